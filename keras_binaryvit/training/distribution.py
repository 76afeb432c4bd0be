"""distribute: data-parallel training over the devices of one host or of several."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import keras

_EVEN = (
    "A batch must divide evenly among the {0} devices of its host: use a batch size that is a multiple of {0} and, "
    "where the last batch isn't, drop_remainder=True or a split of another length."
)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What a model is trained on.

    Attributes:
        devices: names of this host's devices.
        host: this host's number, from 0.
        hosts: how many hosts there are.
    """

    devices: tuple[str, ...]
    host: int = 0
    hosts: int = 1

    @property
    def shard(self) -> tuple[int, int]:
        """This host's part of the data, as `keras_binaryvit.data.load` takes it."""
        return self.host, self.hosts


@contextlib.contextmanager
def distribute(
    devices: int | Sequence[str] | None = None,
    *,
    job_addresses: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[Distribution]:
    """Trains what is built inside on several devices, each of which takes its part of every batch.

        with kb.training.distribute(8) as distribution:
            train = kb.data.load("imagenet2012", batch_size=1024, drop_remainder=True, shard=distribution.shard, ...)
            model = kb.BinaryViT.from_preset("binaryvit_small")
            model.compile(...)
            model.fit(train)

    Losses, gradients and the statistics of `BatchNorm` are those of the global batch: as many devices as one likes
    train the same model. On JAX this is `keras.distribution.DataParallel`, on one host or several; on TensorFlow
    `tf.distribute.MirroredStrategy`, on one host. With one device the model is trained as it would be outside.

    Each host runs the same program, with its own `process_id`, and feeds its own part of every batch. The part must
    divide evenly among the host's devices, in evaluation too.

    Args:
        devices: How many devices of each host to use, or their names (`"gpu:0"`; on one host only); None means all.
        job_addresses: Of several hosts, as `keras.distribution.initialize` takes it. This and the next two may come
            from the environment instead: `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `_NUM_PROCESSES`, `_PROCESS_ID`. If
            `jax.distributed` is initialized already, as `keras.distribution.initialize()` does it on a TPU pod, they
            must not be given.
        num_processes: Number of hosts.
        process_id: This host's number, counted from 0.

    Raises:
        ValueError: A device isn't there, or what is asked for needs another backend.
        RuntimeError: The backend is PyTorch; or several hosts are asked for after JAX has begun to compute.
    """
    backend = keras.backend.backend()
    addresses = {"job_addresses": job_addresses, "num_processes": num_processes, "process_id": process_id}
    if backend == "jax":
        scope, distribution = _on_jax(devices, addresses)
    elif backend == "tensorflow":
        scope, distribution = _on_tensorflow(devices, addresses)
    else:
        raise RuntimeError(
            f"distribute works on JAX and TensorFlow; the Keras backend is {backend!r}. Set the environment variable "
            "KERAS_BACKEND to 'jax' or 'tensorflow' before Keras is imported."
        )
    with scope:
        yield distribution


def _on_jax(devices, addresses):
    import jax

    if _several_hosts(addresses):
        if not jax.distributed.is_initialized():
            keras.distribution.initialize(**addresses)
        elif any(value is not None for value in addresses.values()):
            raise ValueError(
                f"jax.distributed is initialized already: it has {jax.process_count()} processes, this one is number "
                f"{jax.process_index()}. Leave out job_addresses, num_processes and process_id. Received: {addresses}"
            )
    hosts = jax.process_count()
    if hosts > 1 and not (devices is None or isinstance(devices, int)):
        raise ValueError(f"With several hosts, devices is the number to use of each host. Received: devices={devices}")
    available = [[f"{device.platform}:{device.id}" for device in jax.local_devices(host)] for host in range(hosts)]
    chosen = [_choose(devices, names) for names in available]
    distribution = Distribution(chosen[jax.process_index()], jax.process_index(), hosts)
    everywhere = [name for names in chosen for name in names]
    # A mesh of one device would train the same, but Keras compiles the first two steps, not one.
    return _DataParallel(everywhere).scope() if len(everywhere) > 1 else keras.device(*everywhere), distribution


class _DataParallel(keras.distribution.DataParallel):
    """Data parallelism where each host feeds its own part of a batch, which its devices share evenly."""

    def __init__(self, devices: list[str]):
        super().__init__(devices=devices, auto_shard_dataset=False)
        self.devices_per_host = len(devices) // self.num_processes

    def distribute_dataset(self, dataset):
        return _check_batches(dataset, self.devices_per_host)

    def get_data_layout(self, data_shape):
        # What isn't a tf.data.Dataset passes here, with its first batch.
        _check_batch(data_shape[0], self.devices_per_host)
        return super().get_data_layout(data_shape)


def _on_tensorflow(devices, addresses):
    import tensorflow as tf

    if _several_hosts(addresses) or "TF_CONFIG" in os.environ:
        raise ValueError(
            "On TensorFlow, distribute is for one host: Keras 3 doesn't run on tf.distribute's multi-worker strategy. "
            "Set KERAS_BACKEND=jax for several hosts, or unset TF_CONFIG and KERAS_DISTRIBUTION_*. "
            f"Received: {addresses}"
        )

    class Mirrored(tf.distribute.MirroredStrategy):
        def experimental_distribute_dataset(self, dataset, options=None):
            return super().experimental_distribute_dataset(_check_batches(dataset, self.num_replicas_in_sync), options)

    logical = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    chosen = _choose(devices, [device.name.removeprefix("/device:").lower() for device in logical])
    # A strategy with one replica would train the same, without XLA.
    scope = Mirrored([f"/{name.upper()}" for name in chosen]).scope() if len(chosen) > 1 else keras.device(*chosen)
    return scope, Distribution(chosen)


def _several_hosts(addresses):
    return any(
        value is not None or f"KERAS_DISTRIBUTION_{name.upper()}" in os.environ for name, value in addresses.items()
    )


def _choose(devices: int | Sequence[str] | None, available: list[str]) -> tuple[str, ...]:
    """Returns the names of one host's devices to use."""
    if devices is None:
        return tuple(available)
    if isinstance(devices, int) and not isinstance(devices, bool) and 1 <= devices <= len(available):
        return tuple(available[:devices])
    if isinstance(devices, list | tuple) and devices and all(isinstance(name, str) for name in devices):
        names = tuple(name.lower() for name in devices)
        if len(set(names)) == len(names) and set(names) <= set(available):
            return names
    raise ValueError(
        f"devices is a number from 1 to {len(available)}, or a list of different ones of these: "
        f"{', '.join(available)}. Received: devices={devices!r}"
    )


def _check_batches(dataset: Any, devices: int) -> Any:
    """Returns the `tf.data.Dataset` with a check that its batches divide evenly; other data sets as they are."""
    import tensorflow as tf

    if devices == 1 or not isinstance(dataset, tf.data.Dataset):
        return dataset
    size = tf.nest.flatten(dataset.element_spec)[0].shape[0]
    if size is not None:
        _check_batch(size, devices)
        return dataset

    def check(*batch):
        uneven = tf.shape(tf.nest.flatten(batch)[0])[0] % devices
        with tf.control_dependencies([tf.debugging.assert_equal(uneven, 0, _EVEN.format(devices))]):
            return tf.nest.map_structure(tf.identity, batch if len(batch) > 1 else batch[0])

    return dataset.map(check)


def _check_batch(size: int, devices: int) -> None:
    if size % devices:
        raise ValueError(f"{_EVEN.format(devices)} Received: a batch of {size}")
