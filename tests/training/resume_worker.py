"""Trains a small binary network for 3 epochs and prints the SHA-256 of its weights; may kill itself on the way.

python tests/training/resume_worker.py FOLDER [EPOCH STEP]
"""

import hashlib
import os
import signal
import sys
import warnings

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import perturbation

import keras_binaryvit as kb

perturbation.install_if_asked()

EPOCHS, BATCH = 3, 64
JIT = keras.backend.backend() == "jax"  # XLA compiles longer than TensorFlow trains here


class Kill(keras.callbacks.Callback):
    """Ends this process as `kill -9` does, in the middle of an epoch."""

    def __init__(self, epoch, step):
        super().__init__()
        self.at = epoch, step

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def build():
    """Returns a compiled model in which everything that a checkpoint must hold matters."""
    keras.utils.set_random_seed(3)
    quantizers = {"input_quantizer": "approx_sign", "kernel_quantizer": "scaled_sign"}
    layers = [
        keras.Input((8, 8, 1)),
        kb.layers.QuantConv2D(16, 3, strides=2, kernel_quantizer="scaled_sign"),
        kb.layers.BatchNorm(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.1),  # its seed is state
        kb.layers.QuantDense(10, **quantizers),
        kb.layers.BatchNorm(),
    ]
    model = keras.Sequential(layers)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, 9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-2), loss, metrics=["accuracy"], jit_compile=JIT)
    return model


def digest(model):
    """Returns the SHA-256 of all weights and of the optimizer's state."""
    sha = hashlib.sha256()
    for variable in [*model.variables, *model.optimizer.variables]:
        sha.update(np.asarray(keras.ops.convert_to_numpy(variable)).tobytes())
    return sha.hexdigest()


def main(folder, *kill_at):
    warnings.filterwarnings("error", message="No checkpoint|The checkpoint|The logs")
    checkpoints = kb.training.TrainingCheckpoint(folder, keep=2)
    epoch = checkpoints.completed_epochs
    training = kb.data.load(
        "digits", "train[:192]", batch_size=BATCH, augment=True, shuffle=True, seed=5, first_epoch=epoch
    )
    testing = kb.data.load("digits", "test[:64]", batch_size=BATCH)
    model = build()
    restored = checkpoints.restore(model)
    print("restored", restored)
    kill = [Kill(int(kill_at[0]), int(kill_at[1]))] if kill_at else []
    model.fit(
        training,
        epochs=EPOCHS,
        initial_epoch=epoch,
        validation_data=testing,
        callbacks=[*kill, checkpoints],
        verbose=0,
    )
    print("digest", digest(model))
    print("losses", *checkpoints.history["loss"])


if __name__ == "__main__":
    main(*sys.argv[1:])
