"""Trains a small BinaryViT on digits and writes down what came of it: one process of a test or measurement of scaling.

    KERAS_BACKEND=jax python scaling_worker.py out.npz --devices 2 [--processes 2 --process 0 --address 127.0.0.1:1234]
    KERAS_BACKEND=jax python scaling_worker.py {}.npz --devices 1 2

The data are two hosts' parts. A process of two feeds its own one; a process alone feeds both, joined batch by batch.
With several numbers of devices it trains once with each, and the file's name says where the number goes.
"""

import argparse
import os
import time

BATCH_SIZE = 16


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--devices", type=int, nargs="+", required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--address", help="of process 0")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=8)
    parser.add_argument("--channels", type=int, default=8)
    return parser.parse_args()


def main():
    arguments = parse()
    # Compiled quickly, rather than to run fast.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={max(arguments.devices)} --xla_backend_optimization_level=0"
    )
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * max(arguments.devices))
    for devices in arguments.devices:
        train(arguments, devices)


def train(arguments, devices):
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_binaryvit as kb

    def load(shard):
        split = f"train[:{arguments.steps * BATCH_SIZE}]"
        size = {"batch_size": BATCH_SIZE, "image_size": arguments.image_size}
        return kb.data.load("digits", split, shard=shard, shuffle=False, **size)

    def join(*batches):
        return tuple(tf.concat(parts, axis=0) for parts in zip(*batches, strict=True))

    losses, seconds = [], []

    class Recorder(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            losses.append(float(logs["loss"]))
            seconds.append(time.perf_counter() - self.start)

    keras.utils.clear_session()
    hosts = {"job_addresses": arguments.address, "num_processes": arguments.processes, "process_id": arguments.process}
    with kb.training.distribute(devices, **(hosts if arguments.processes > 1 else {})) as distribution:
        keras.utils.set_random_seed(0)
        model = kb.BinaryViT(
            image_shape=(arguments.image_size, arguments.image_size, 1),
            num_classes=10,
            patch_size=2,
            embed_dims=(arguments.channels,),
            depths=(1,),
            num_heads=(2,),
            sr_ratios=(1,),
            mlp_ratios=(1,),
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        if arguments.processes > 1:
            data = load(distribution.shard)
        else:
            data = tf.data.Dataset.zip(load((0, 2)), load((1, 2))).map(lambda *batches: join(*batches))
        model.fit(data, callbacks=[Recorder()], verbose=0)
        record = {f"weight {weight.path}": np.array(weight) for weight in model.weights}
        record |= {"loss": losses, "seconds": seconds}
        record |= {"labels": [labels for _, labels in data.as_numpy_iterator()], "devices": list(distribution.devices)}
        if keras.backend.backend() == "tensorflow" and devices > 1:
            record["equal replicas"] = all(equal_on_all_replicas(weight.value) for weight in model.weights)
        if arguments.processes == 1 and devices > 1:
            rows = data.unbatch().take(BATCH_SIZE + 3)
            record["odd batches"] = error(model, rows.batch(7, drop_remainder=True))
            record["odd last batch"] = error(model, rows.batch(BATCH_SIZE))
            record["finite"] = all(np.isfinite(weights).all() for weights in model.get_weights())
    np.savez(arguments.out.format(devices), **record)


def equal_on_all_replicas(variable):
    import tensorflow as tf

    first, *others = tf.distribute.get_strategy().experimental_local_results(variable)
    return all(bool(tf.reduce_all(first == other)) for other in others)


def error(model, data):
    """Returns what training on the data raises."""
    try:
        model.fit(data, verbose=0)
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "none"


if __name__ == "__main__":
    main()
