"""Tries wrong input and prints what each says: `python tools/show_errors.py`."""

import contextlib
import io
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_binaryvit as kb

ROOT = Path(__file__).resolve().parent.parent
TINY = {"image_shape": (16, 16, 3), "num_classes": 5, "patch_size": 2, "embed_dims": (16, 32), "depths": (1, 1)}
TINY |= {"num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}


def say(title, action):
    """Prints the error of `action`, or else its last warning: the first 400 characters on one line."""
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            action()
            happened = caught[-1].message if caught else None
        except (Exception, SystemExit) as error:
            happened = error
    text = "no error" if happened is None else f"{type(happened).__name__}: {' '.join(str(happened).split())}"
    text = text.removeprefix("SystemExit: ")
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/tmp\w+", "FOLDER", re.sub(r"\x1b\[\d+m", "", text))
    # What TensorFlow says around an assertion of its graph, and how it quotes that, depends on which thread is first.
    if assertion := re.search(r"Graph execution error: .*?(assertion failed: \[.*?\])", text):
        text = text[: assertion.start()] + "... " + re.sub(r"\\+'", "'", assertion[1]) + " ..."
    print(f"* **{title}**<br>\n  `` {text[:400]} ``")


def command(script, *arguments):
    """Runs a script of the project in this process, and raises the message with which it ends."""
    printed = io.StringIO()
    with mock.patch.object(sys, "argv", [script, *map(str, arguments)]), contextlib.redirect_stderr(printed):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            # What argparse refuses, it prints.
            raise SystemExit(end.code if isinstance(end.code, str) else printed.getvalue().splitlines()[-1]) from None


def checkpoints(folder):
    """Tries checkpoints that are broken, of another architecture, or would run code."""
    golden = ROOT / "tests" / "golden" / "deit_fp.npz"
    (folder / "cut.npz").write_bytes(golden.read_bytes()[:1000])
    from_torch = kb.torch_checkpoints.from_torch
    say("checkpoint of another size", lambda: from_torch(golden, preset="deit_tiny"))
    say("checkpoint cut short", lambda: from_torch(folder / "cut.npz", preset="deit_tiny"))
    say("checkpoint that isn't there", lambda: from_torch(folder / "best.npz", preset="deit_tiny"))
    say("checkpoint of unknown format", lambda: from_torch(folder / "best.h5", preset="deit_tiny"))
    say("checkpoint without an architecture", lambda: from_torch(golden))
    say("configuration without an entry", lambda: kb.torch_checkpoints.create_model({}, config={"patch_size": 4}))
    (folder / "evil.pth").write_bytes(b"cos\nsystem\n(S'echo This ran.'\ntR.")
    say("pickle that would run a command", lambda: from_torch(folder / "evil.pth", preset="deit_tiny"))
    with mock.patch.dict(sys.modules, torch=None):
        say("PyTorch not installed", lambda: kb.torch_checkpoints.read_state_dict(folder / "evil.pth"))
    say(
        "from_torch.py without an architecture",
        lambda: command("converters/from_torch.py", golden, folder / "x.keras"),
    )


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

    class Deciding(Half):
        """Decides by values what it does."""

        def build(self, input_shape):
            self.projection.build(input_shape)

        def call(self, inputs):
            return inputs if bool(keras.ops.max(inputs) > 0) else self.projection(inputs)

        def compute_output_shape(self, input_shape):
            return input_shape

    sized = keras.Input((None, None, 3))
    dynamic = kb.layers.QuantConv2D(4, 3, **arguments)(sized)
    say("layer that was never built", lambda: kb.deploy.freeze(keras.Model(image, Half()(image))))
    say("layer that can't be followed", lambda: kb.deploy.freeze(keras.Model(image, Deciding()(image))))
    say("image of any size", lambda: kb.deploy.convert(keras.Model(sized, dynamic)))
    sequence = keras.Input((None, 4))
    causal = kb.layers.QuantConv1D(4, 3, padding="causal", name="causal", **arguments)
    say("causal convolution of any length", lambda: kb.deploy.freeze(keras.Model(sequence, causal(sequence))))
    signs = {"input_quantizer": "ste_sign", "depthwise_quantizer": "ste_sign"}
    depthwise = kb.layers.QuantDepthwiseConv2D(3, name="depthwise", **signs)
    say("binary depthwise convolution", lambda: kb.deploy.convert(keras.Model(image, depthwise(image))))
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


def student(classes=10, name="student", shape=(8, 8, 1), units=4):
    """Returns a compiled network that takes a second to make."""
    layers = keras.layers
    hidden = kb.layers.QuantDense(units, input_quantizer="ste_sign", kernel_quantizer="ste_sign")
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), hidden, layers.Dense(classes)], name=name)
    compile_eagerly(model)
    return model


def compile_eagerly(model, optimizer="adam"):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], run_eagerly=True)


def digits(split="train[:96]", **arguments):
    return kb.data.load("digits", split, **{"batch_size": 32, **arguments})


def distillation(folder):
    """Tries teachers that don't fit the student, data without images, a loss that isn't finite, and cached logits."""

    def distill(teacher, dataset, classes=10, **arguments):
        distiller = kb.training.Distiller(student(classes), teacher, **arguments)
        compile_eagerly(distiller)
        distiller.fit(dataset, verbose=0)

    teacher = student(name="teacher")
    unbuilt = keras.Sequential([keras.layers.Dense(10)], name="teacher")
    soft = keras.Sequential([teacher, keras.layers.Softmax()], name="soft")
    real = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    nan = digits().map(lambda images, labels: (images * np.nan, labels))
    say("teacher with other classes", lambda: distill(student(5, "teacher"), digits()))
    say("teacher that ends in a softmax", lambda: distill(soft, digits()))
    say("teacher without weights", lambda: distill(unbuilt, digits()))
    say("teacher of larger images", lambda: distill(student(name="teacher", shape=(16, 16, 1)), digits()))
    say("no teacher", lambda: distill(None, digits()))
    say("label weight of 1", lambda: distill(teacher, digits(), label_weight=1))
    say("NaN images, Distiller", lambda: distill(real, nan))
    say("data set without a batch", lambda: distill(teacher, digits(batch_size=100, drop_remainder=True)))
    say("empty split", lambda: digits("train[:0]"))
    say("split that three hosts can't share", lambda: digits("train[:97]", batch_size=33, shard=(0, 3)))

    logits = folder / "logits.npy"
    cached = kb.training.with_cached_logits
    kb.training.cache_logits(teacher, digits(), logits, verbose=False)
    say("cached logits of other images", lambda: distill(None, cached(digits("test[:96]"), logits)))
    say("cached logits, and a teacher", lambda: distill(teacher, cached(digits(), logits)))
    say("cached logits for another student", lambda: distill(None, cached(digits(), logits), classes=5))
    other = student(name="other")
    say("cache of another teacher", lambda: kb.training.cache_logits(other, digits(), logits, verbose=False))
    more = folder / "more.npy"
    cache_more = lambda: kb.training.cache_logits(teacher, digits(), more, verbose=False)  # noqa: E731
    say("full disk, cached logits", lambda: on_a_full_disk(cache_more))
    logits.write_bytes(logits.read_bytes()[:-100])
    say("cached logits cut short", lambda: cached(digits(), logits))
    say("cached logits that aren't there", lambda: cached(digits(), folder / "other.npy"))


def devices():
    """Tries batches that two devices can't share, and devices that aren't there."""

    def fit(devices, dataset):
        with kb.training.distribute(devices):
            model = student()
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
            model.fit(dataset, verbose=0)

    say("batch that the devices don't divide", lambda: fit(2, digits(batch_size=31, drop_remainder=True)))
    say("last batch that they don't divide", lambda: fit(2, digits("train[:33]")))
    say("more devices than there are", lambda: fit(8, digits()))
    say("device that isn't there", lambda: fit(["cpu:0", "gpu:0"], digits()))


def runs(folder):
    """Tries checkpoints that are damaged or of another run, and a disk that is full when one is to be written."""

    def fit(folder, epochs, initial_epoch=0, model=None, restore=False):
        checkpoints = kb.training.TrainingCheckpoint(folder, monitor="loss")
        model = model or student()
        if restore:
            checkpoints.restore(model)
        model.fit(digits(), epochs=epochs, initial_epoch=initial_epoch, verbose=0, callbacks=[checkpoints])

    def restore(model):
        return kb.training.TrainingCheckpoint(run).restore(model)

    run = folder / "run"
    fit(run, 2)
    sgd = student()
    compile_eagerly(sgd, "sgd")
    say("new run in the folder of another", lambda: fit(run, 2))
    say("continued without initial_epoch", lambda: fit(run, 4, restore=True))
    say("continued with another architecture", lambda: restore(student(units=5)))
    say("continued with another optimizer", lambda: restore(sgd))
    say("model that isn't compiled", lambda: restore(keras.Sequential([keras.layers.Dense(3)])))
    say("folder that can't be written to", lambda: fit("/proc/run", 1))
    say("full disk, checkpoint", lambda: on_a_full_disk(lambda: fit(run, 3, 2, restore=True)))
    say("best by a metric that isn't logged", lambda: kb.training.TrainingCheckpoint(run).load_best(student()))
    files = sorted(run.glob("epoch-*.npz"))
    files[-1].write_bytes(files[-1].read_bytes()[:1000])
    say("newest checkpoint cut short", lambda: restore(student()))
    for file in files:
        file.write_bytes(b"")
    say("all checkpoints damaged", lambda: restore(student()))


def presets(folder):
    """Tries presets that don't exist, don't fit, or are damaged."""
    path = folder / "preset"
    kb.BinaryViT(**TINY, name="mine").save_to_preset(path)
    say("preset's weights, other widths", lambda: kb.BinaryViT.from_preset(path, embed_dims=(16, 64)))
    say("preset of another class", lambda: kb.DeiT.from_preset(path))
    say("preset without weights", lambda: kb.DeiT.from_preset("deit_tiny", load_weights=True))
    weights = path / "weights.npz"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    say("preset, a changed bit", lambda: kb.BinaryViT.from_preset(path))
    weights.unlink()
    say("preset, no file", lambda: kb.BinaryViT.from_preset(path))


def optimizers():
    """Tries optimizers that leave variables to nobody or to two."""
    case, bop, adam = kb.optimizers.CaseOptimizer, kb.optimizers.Bop, keras.optimizers.Adam

    def fit(optimizer):
        model = student()
        compile_eagerly(model, optimizer)
        model.fit(digits(), verbose=0)

    say("kernels of two optimizers", lambda: fit(case((bop.is_binary_variable, bop()), (lambda v: True, adam()))))
    say("variables of no optimizer", lambda: fit(case((bop.is_binary_variable, bop()))))
    say("optimizer of no variable", lambda: fit(case((lambda v: False, bop()), default_optimizer=adam())))


def training(folder):
    """Tries wrong options and data with binaryvit-train, on 24 images in ImageNet's form."""
    sys.path.insert(0, str(ROOT / "tests" / "commands"))
    import tensorflow as tf
    import test_train as mini

    from binaryvit_commands import train
    from keras_binaryvit.models import Preset, PresetMetadata, presets

    def run(*options, data="data", output="out"):
        arguments = ["--preset=mini", "--image-size=16", "--batch-size=8", "--epochs=1", "--devices=1"]
        arguments += [f"--data-dir={folder / data}", f"--output={folder / output}", "--recipe=imagenet", *options]
        with mock.patch.object(sys, "argv", ["binaryvit-train", "imagenet2012", *arguments]):
            train.main()

    images = mini.examples(24)
    damaged = [*images[:12], (b"no JPEG", 0), *images[13:]]
    splits = {
        "data": {"train": images, "validation": images[:8]},
        "damaged": {"train": damaged, "validation": images[:8]},
        "train_only": {"train": images},
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for name, files in splits.items():
            (folder / name).mkdir()
            mini.write(folder / name, files)
    (folder / "cut.keras").write_bytes(b"no archive")
    (folder / "full").mkdir()
    (folder / "full" / "history.csv").symlink_to("/dev/full")
    tf.config.run_functions_eagerly(True)  # to compile the network takes longer than all its steps
    with mock.patch.dict(presets.REGISTRY, mini=(kb.BinaryViT, Preset(TINY, PresetMetadata("", 0)))):
        say("unknown preset of binaryvit-train", lambda: run("--preset=maxi", output="maxi"))
        say("split smaller than a batch", lambda: run("--train-split=train[:5]", output="small"))
        say("warm-up as long as the training", lambda: run("--warmup-epochs=1", output="warm"))
        say("teacher of other classes", lambda: run(f"--teacher={mini.teacher(folder, 5)}", output="classes"))
        say("teacher that isn't there", lambda: run(f"--teacher={folder / 'none.keras'}", output="none"))
        say("teacher cut short", lambda: run(f"--teacher={folder / 'cut.keras'}", output="cut"))
        say("data set without test images", lambda: run(data="train_only", output="train_only"))
        say("damaged JPEG in the middle of an epoch", lambda: run(data="damaged"))
        say("folder of another run", lambda: (run(output="whole"), run(output="whole")))
        say("continued differently", lambda: run("--resume", "--clip-norm=1", output="whole"))
        say("full disk, logs", lambda: run(output="full"))
    tf.config.run_functions_eagerly(False)


def image_folders(folder):
    """Tries folders of images that hold no classes, empty ones, other files, or not the same ones."""

    def written(name, *files):
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_bytes(b"no image")
        return f"{folder / name}/"

    say("folder of images that isn't there", lambda: kb.data.load(f"{folder}/nowhere/"))
    (folder / "photos").mkdir()
    say("folder without classes", lambda: kb.data.load(folder / "photos"))
    (folder / "empty" / "cat").mkdir(parents=True)
    say("class without images", lambda: kb.data.load(written("empty", "dog/a.jpg")))
    say("class with other files", lambda: kb.data.load(written("strange", "cat/a.heic", "dog/a.jpg")))
    splits = written("splits", "train/cat/a.jpg", "train/dog/a.jpg", "validation/cat/a.jpg", "validation/cow/a.jpg")
    say("splits with other classes", lambda: kb.data.load(splits))


def on_a_full_disk(action):
    """Runs `action` where no file can grow beyond 1,000 bytes, which looks the same to a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def larq_without_the_flag():
    """Asks for a quantizer of Larq in a process that has not imported Larq yet."""
    code = "import keras_binaryvit as kb; kb.quantizers.get('larq.approx_sign')"
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    raise SystemExit(done.stderr.strip().splitlines()[-1])


def interrupted(*arguments):
    """Runs a script of the project, interrupts it as soon as it converts, and raises what it prints on stderr."""
    with tempfile.NamedTemporaryFile() as errors:
        command = [sys.executable, *map(str, arguments)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        printed = ""
        while "converting" not in printed and process.poll() is None:
            printed += process.stdout.read(1)
        # TensorFlow swallows an interruption while it calls Python; one that has arrived must not be disturbed again.
        while process.poll() is None:
            if b"interrupted" not in Path(errors.name).read_bytes():
                process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=3)
        raise SystemExit(Path(errors.name).read_text().strip().splitlines()[-1])


def main():
    import tensorflow as tf

    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    folder = Path(tempfile.mkdtemp())
    print("## Models, data and conversion\n")
    conversion(folder)
    print("\n## Training\n")
    distillation(folder)
    devices()
    runs(folder)
    presets(folder)
    optimizers()
    print("\n## Training\n")
    training(folder)


def conversion(folder):
    """Tries models that can't be, data that isn't there, and files that can't be converted."""
    model = kb.BinaryViT(**TINY)
    model.save(folder / "model.keras")
    (folder / "cut.keras").write_bytes((folder / "model.keras").read_bytes()[:9000])

    say("wrong channels", lambda: model.predict(np.zeros((1, 16, 16, 1)), verbose=0))
    say("heads that don't divide", lambda: kb.BinaryViT(**(TINY | {"num_heads": (3, 2)})))
    say("reduction that doesn't divide", lambda: kb.BinaryViT(**(TINY | {"sr_ratios": (3, 1)})))
    say("image that the patches don't divide", lambda: kb.BinaryViT(**(TINY | {"image_shape": (15, 16, 3)})))
    say("tuples of different length", lambda: kb.BinaryViT(**(TINY | {"depths": (1, 1, 1)})))
    say("unknown quantizer", lambda: kb.layers.QuantDense(3, input_quantizer="aprox_sign"))
    say("layer that Larq has", lambda: kb.layers.QuantConv3D)
    hidden = kb.layers.QuantDense(3, kernel_quantizer="ste_sign", name="hidden")
    say("1-bit kernel without a constraint", lambda: hidden.build((1, 4)))
    say("unknown preset", lambda: kb.BinaryViT.from_preset("binaryvit_large"))
    say("unknown data set", lambda: kb.data.load("cifar11", data_dir=folder))
    say("data_dir that isn't there", lambda: kb.data.load("cifar10", data_dir=folder / "nowhere"))
    say("data set that isn't prepared", lambda: kb.data.load("cifar10", data_dir=folder))
    image_folders(folder)
    say("checkpoint with a missing name", lambda: kb.torch_checkpoints.load_torch_state_dict(model, {}))
    checkpoints(folder)
    nan = np.full((1, 16, 16, 3), np.nan, "float32")
    flatbuffer = kb.deploy.convert(model)
    say("C header of a file for LCE", lambda: kb.deploy.export_c(flatbuffer))
    say("C header with a name that isn't one", lambda: kb.deploy.export_c(flatbuffer, "2nd"))
    say("NaN images, verify", lambda: kb.deploy.verify(model, flatbuffer, nan))
    to_lce = "converters/to_lce.py"
    say(".keras file cut short", lambda: command(to_lce, folder / "cut.keras", folder / "x.tflite"))
    say("output folder missing", lambda: command(to_lce, folder / "model.keras", folder / "no" / "x.tflite"))
    say("output folder read-only", lambda: command(to_lce, folder / "model.keras", "/proc/x.tflite"))
    with mock.patch("importlib.util.find_spec", return_value=None):
        say("TensorFlow not installed", lambda: kb.deploy.convert(model))
    say("Larq without the legacy flag", larq_without_the_flag)
    conversions(folder)


if __name__ == "__main__":
    main()
