"""Tries wrong input and prints what each says: `python tests/show_errors.py`."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_binaryvit as kb

ROOT = Path(__file__).resolve().parent.parent
TINY = {"image_shape": (16, 16, 3), "num_classes": 5, "patch_size": 2, "embed_dims": (16, 32), "depths": (1, 1)}
TINY |= {"num_heads": (1, 2), "reductions": (2, 1), "expansions": (2, 2)}


def say(title, action):
    """Prints the error of `action`, its first 400 characters on one line."""
    try:
        action()
        text = "no error"
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    print(f"* **{title}**\n  {text[:400]}")


def command(*arguments, **environment):
    """Runs a script of the project and raises what it prints on stderr."""
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemError(done.stderr.strip().splitlines()[-1])


def checkpoints(folder):
    """Tries checkpoints that are broken, of another architecture, or would run code."""
    golden = ROOT / "tests" / "golden" / "deit_fp.npz"
    (folder / "cut.npz").write_bytes(golden.read_bytes()[:1000])
    from_torch = kb.checkpoints.from_torch
    say("checkpoint of another size", lambda: from_torch(golden, preset="deit_tiny"))
    say("checkpoint cut short", lambda: from_torch(folder / "cut.npz", preset="deit_tiny"))
    say("checkpoint that isn't there", lambda: from_torch(folder / "best.npz", preset="deit_tiny"))
    say("checkpoint of unknown format", lambda: from_torch(folder / "best.h5", preset="deit_tiny"))
    say("checkpoint without an architecture", lambda: from_torch(golden))
    say("configuration without an entry", lambda: kb.checkpoints.create_model({}, config={"patch_size": 4}))
    (folder / "evil.pth").write_bytes(b"cos\nsystem\n(S'echo This ran.'\ntR.")
    say("pickle that would run a command", lambda: from_torch(folder / "evil.pth", preset="deit_tiny"))
    hide = "import sys; import keras_binaryvit as kb; sys.modules['torch'] = None; "
    say(
        "PyTorch not installed",
        lambda: command("-c", hide + f"kb.checkpoints.read_state_dict('{folder / 'evil.pth'}')"),
    )
    arguments = str(golden), str(folder / "x.keras")
    say("from_torch.py without an architecture", lambda: command("converters/from_torch.py", *arguments))


def conversions(folder):
    """Tries models that can't be frozen or converted, a full disk and Ctrl-C."""
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    arguments = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}

    class Half(layers.Layer):
        """Holds a layer that it never uses."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.projection = kb.layers.QuantDense(4, **arguments)

        def build(self, input_shape):
            pass

        def call(self, inputs):
            return inputs

    class Fixed(Half):
        """Makes its binary layer itself."""

        def build(self, input_shape):
            self.projection.build(input_shape)

        def call(self, inputs):
            return self.projection(inputs)

    sized = keras.Input((None, None, 3))
    dynamic = kb.layers.QuantConv2D(4, 3, **arguments)(sized)
    say("layer that was never built", lambda: kb.deploy.freeze(keras.Model(image, Half()(image))))
    say("layer that fixes its kernel quantiser", lambda: kb.deploy.freeze(keras.Model(image, Fixed()(image))))
    say("layer with a lambda", lambda: kb.deploy.freeze(keras.Model(image, layers.Lambda(lambda x: 2 * x)(image))))
    say("image of any size", lambda: kb.deploy.convert(keras.Model(sized, dynamic)))
    say("model without weights", lambda: kb.deploy.freeze(keras.Sequential([layers.Dense(3)])))

    import tf_keras

    old = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))])
    old.save(folder / "old.keras")
    say("Keras 2 model", lambda: kb.deploy.freeze(old))
    say("Keras 2 file", lambda: kb.deploy.load_model(folder / "old.keras"))

    output = folder / "kept.tflite"
    output.write_bytes(b"what was there")
    say("full disk", lambda: on_a_full_disk(lambda: kb.deploy.write_file(output, bytes(5000))))
    say("Ctrl-C half way", lambda: interrupted("converters/to_lce.py", folder / "model.keras", output))
    kept = output.read_bytes() == b"what was there"
    beside = list(folder.glob(".kept*"))
    print(f"\nAfter the last two the old file is {'as it was' if kept else 'lost'}; beside it: {beside}")


def on_a_full_disk(action):
    """Runs `action` where no file can grow beyond 1,000 bytes, which looks the same to a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def interrupted(*arguments):
    """Runs a script of the project until it converts, interrupts it, and raises what it prints on stderr."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    printed = ""
    while "converting" not in printed and process.poll() is None:
        printed += process.stdout.read(1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    raise SystemError(process.communicate()[1].strip().splitlines()[-1])


def main():
    model = kb.BinaryViT(**TINY)
    folder = Path(tempfile.mkdtemp())
    model.save(folder / "model.keras")
    (folder / "cut.keras").write_bytes((folder / "model.keras").read_bytes()[:9000])

    say("wrong channels", lambda: model.predict(np.zeros((1, 16, 16, 1)), verbose=0))
    say("heads that don't divide", lambda: kb.BinaryViT(**(TINY | {"num_heads": (3, 2)})))
    say("reduction that doesn't divide", lambda: kb.BinaryViT(**(TINY | {"reductions": (3, 1)})))
    say("image that the patches don't divide", lambda: kb.BinaryViT(**(TINY | {"image_shape": (15, 16, 3)})))
    say("tuples of different length", lambda: kb.BinaryViT(**(TINY | {"depths": (1, 1, 1)})))
    say("unknown quantiser", lambda: kb.layers.QuantDense(3, input_quantizer="aprox_sign"))
    say("unknown preset", lambda: kb.BinaryViT.from_preset("binaryvit_large"))
    say("unknown data set", lambda: kb.data.load("cifar11", data_dir=folder))
    say("data_dir that isn't there", lambda: kb.data.load("cifar10", data_dir=folder / "nowhere"))
    say("data set that isn't prepared", lambda: kb.data.load("cifar10", data_dir=folder))
    say("checkpoint with a missing name", lambda: kb.checkpoints.load_torch_state_dict(model, {}))
    checkpoints(folder)
    nan = np.full((1, 16, 16, 3), np.nan, "float32")
    flatbuffer = kb.deploy.convert(model)
    say("NaN images, verify", lambda: kb.deploy.verify(model, flatbuffer, nan))
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    history = model.fit(nan, np.zeros(1), verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()])
    print(
        f"* **NaN images, fit**\n  the loss is {history.history['loss'][0]}; TerminateOnNaN stops, as in the examples"
    )
    to_lce = "converters/to_lce.py"
    say(".keras file cut short", lambda: command(to_lce, str(folder / "cut.keras"), str(folder / "x.tflite")))
    say("output folder missing", lambda: command(to_lce, str(folder / "model.keras"), str(folder / "no" / "x.tflite")))
    say("output folder read-only", lambda: command(to_lce, str(folder / "model.keras"), "/proc/x.tflite"))
    hide = "import sys; sys.modules['larq_compute_engine'] = None; import keras_binaryvit as kb; "
    say("LCE not installed", lambda: command("-c", hide + f"kb.deploy.convert(kb.BinaryViT(**{TINY}))"))
    larq = "import keras_binaryvit as kb; kb.quantizers.get('larq.approx_sign')"
    say("Larq without the legacy flag", lambda: command("-c", larq, TF_USE_LEGACY_KERAS="0"))
    conversions(folder)


if __name__ == "__main__":
    main()
