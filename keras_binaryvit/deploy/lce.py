"""convert and predict: the Larq Compute Engine's converter, and the interpreters of what it makes."""

import collections
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_binaryvit.deploy import rewrite, tflite
from keras_binaryvit.deploy.binary import binary_table
from keras_binaryvit.deploy.composite import writing
from keras_binaryvit.deploy.freeze import binary_layers, freeze
from keras_binaryvit.deploy.graph import ConversionError
from keras_binaryvit.deploy.half import with_float16_tables
from keras_binaryvit.deploy.runtime_layers import OPERATORS, fused_layers


def _require_lce():
    """Checks that the Larq Compute Engine is installed, without importing it: that starts TensorFlow."""
    if importlib.util.find_spec("larq_compute_engine") is None:
        raise ImportError(
            "Conversion and LCE's interpreter need the Larq Compute Engine, which has wheels for Python 3.11 and 3.12 "
            "on 64-bit x86 Linux only: there, `pip install 'keras-binaryvit[lce]'` installs it."
        )


def _require_lces_interpreter():
    _require_lce()
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":  # else it would complain of empty inputs
        raise ImportError(
            f"The Larq Compute Engine's interpreter was compiled for NumPy 1, and NumPy {np.__version__} is installed: "
            "pip install 'numpy<2'."
        )


def convert(model: keras.Model, ops: str = "lce", float16_tables: bool = False) -> bytes:
    """Returns the `.tflite` flatbuffer of `model`, for batches of one image.

    On JAX and PyTorch, TensorFlow runs in a process of its own, which gets the frozen model.

    Args:
        model: A model of any layers, trained or frozen.
        ops: `"lce"`: what an unmodified Larq Compute Engine runs. `"fused"`: one operator each for attention,
            feed-forward layers, pooling branches and binary patch merging, which binaryvit-runtime runs
            (docs/operators.md); all else is as with `"lce"`.
        float16_tables: Whether large float constants outside of custom operators, such as position embeddings and the
            kernel of the head, are stored as float16. The file is smaller, and rounding flips a few bits.

    Raises:
        ValueError: `ops` is unknown, a side of the input is unknown, the model can't be frozen, or float16 can't hold a
            constant.
        ConversionError: A binary layer didn't become a binary operator, or the converter failed.
        ImportError: The Larq Compute Engine isn't installed.
    """
    _require_lce()
    frozen = freeze(model, ops)
    if refused := [str(row) for row in binary_table(model) if row.claimed and not row.binary]:
        raise ConversionError(
            "These layers have quantizers of one bit and would run in float, slow and large:\n" + "\n".join(refused)
        )
    for tensor in frozen.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                "Every side of the input but the batch must be known: LCE plans its memory before it runs. "
                f"Received: shape {tensor.shape}"
            )
    in_this_process = keras.backend.backend() == "tensorflow"
    flatbuffer = convert_frozen(frozen) if in_this_process else _convert_elsewhere(frozen)

    converted = count_ops(flatbuffer)
    binary = len(binary_layers(frozen))
    if converted["LceBconv2d"] < binary:
        raise ConversionError(
            f"The model has {binary} binary layers, but only {converted['LceBconv2d']} became LceBconv2d; the others "
            "would run in float, slow and large. The LCE converter binarises products of a sign (+-1, as ste_sign and "
            "approx_sign give; not the 0/1 of ste_heaviside), of unpadded maps or maps padded with 1."
        )
    for name, count in collections.Counter(layer.operator for layer in fused_layers(frozen)).items():
        if converted[name] != count:
            raise ConversionError(f"The model has {count} layers that are {name}, but the file {converted[name]}.")
    return with_float16_tables(flatbuffer) if float16_tables else flatbuffer


def convert_frozen(frozen: keras.Model) -> bytes:
    """Returns the flatbuffer of a frozen model; the Keras backend is TensorFlow.

    Raises:
        ImportError: The Larq Compute Engine isn't installed.
    """
    _require_lce()
    import larq_compute_engine as lce
    import tensorflow as tf

    # LCE cuts the names of tensors to 50 characters, which belong to the layers.
    model = keras.Model(frozen.inputs, frozen.outputs, name="m")
    signature = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, tensor.name) for tensor in frozen.inputs]

    def serve(*inputs):
        outputs = keras.tree.flatten(model(list(inputs), training=False))
        return {f"output_{index}": output for index, output in enumerate(outputs)}

    # Traced once: Keras' own export does so several times, which for a large model takes longer than the conversion.
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    with writing(lce=False) as layers:
        serving = module.serve.get_concrete_function()
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=serving)
        flatbuffer = lce.convert_saved_model(folder)
    return _name_fused(flatbuffer, layers) if layers else flatbuffer


def _name_fused(flatbuffer, layers):
    """Gives the tensors of fused operators names after their layers, which the converter loses."""
    flexbuffers = importlib.import_module("flatbuffers.flexbuffers")
    model = rewrite.unpack(flatbuffer)
    names = {layer.operator for layer in layers}
    codes = [(code.customCode or b"").decode() in names for code in model.operatorCodes]
    for graph in model.subgraphs:
        for operator in graph.operators:
            if not codes[operator.opcodeIndex]:
                continue
            layer = layers[flexbuffers.GetRoot(bytearray(operator.customOptions)).AsMap["layer"].AsInt]
            # As the converter names the tensors of a layer; `inspect` reads it.
            name = f"m_1/{layer.name}_1/{layer.operator}".encode()
            for index in (*operator.inputs, *operator.outputs):
                tensor = graph.tensors[index]
                constant = model.buffers[tensor.buffer].data is not None
                if constant or (index in operator.outputs and index not in graph.outputs):
                    tensor.name = name
    return rewrite.pack(model)


def _convert_elsewhere(frozen):
    names = {type(layer).__module__ for layer in frozen._flatten_layers()}
    modules = sorted(name for name in names if name.split(".")[0] not in ("keras", "keras_binaryvit", "builtins"))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "frozen.keras"), Path(folder, "model.tflite")
        frozen.save(source)
        command = [sys.executable, "-m", "keras_binaryvit.deploy.convert_process", str(source), str(target), *modules]
        # Modules of the caller's own layers are found where the caller finds them.
        path = os.pathsep.join(entry or os.curdir for entry in sys.path)
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": path}
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        if process.returncode:
            raise ConversionError(f"The conversion in a process of its own failed:\n{process.stderr.strip()[-2000:]}")
        return target.read_bytes()


def count_ops(flatbuffer: bytes) -> collections.Counter:
    """Returns how many operators of each type `flatbuffer` has, by name such as `"CONV_2D"` or `"LceBconv2d"`.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
    """
    return collections.Counter(operator.name for operator in tflite.read(flatbuffer).operators)


def predict(flatbuffer: bytes, images: np.ndarray, num_threads: int = 1, progress: bool = False) -> np.ndarray:
    """Returns the outputs of `flatbuffer` for `images`, one image after the other.

    LCE's interpreter runs it, or binaryvit-runtime where it has fused operators.

    Args:
        flatbuffer: A model with one input and one output, as `convert` gives.
        images: `(batch, height, width, channels)`, normalised as in training.
        num_threads: Threads of the interpreter.
        progress: Whether to show a progress bar on stderr.

    Returns:
        `(batch, num_classes)`, float32.

    Raises:
        ValueError: The images have another shape than the model takes, or values that aren't finite.
        ImportError: The Larq Compute Engine or binaryvit-runtime isn't installed.
    """
    interpreter = interpreter_of(flatbuffer, num_threads)
    images = np.asarray(images, np.float32)
    expected = tuple(interpreter.input_shapes[0][1:])
    if images.ndim != len(expected) + 1 or images.shape[1:] != expected:
        raise ValueError(f"The flatbuffer takes images of shape {expected}. Received: {images.shape[1:]}")
    if not np.isfinite(images).all():
        raise ValueError("The images hold values that are not finite (NaN or infinity).")
    batches = images[:, None]
    if progress:
        import tqdm

        batches = tqdm.tqdm(batches, desc="Predicting", unit="image")
    return np.concatenate([np.atleast_2d(interpreter.predict(image)) for image in batches])


def interpreter_of(flatbuffer: bytes, num_threads: int = 1) -> Any:
    """Returns an interpreter of `flatbuffer`: LCE's, or for fused operators that of binaryvit-runtime.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
        ImportError: The Larq Compute Engine or binaryvit-runtime isn't installed.
    """
    return (runtime_interpreter if is_fused(flatbuffer) else lce_interpreter)(flatbuffer, num_threads)


def is_fused(flatbuffer: bytes) -> bool:
    """Whether `flatbuffer` has fused operators.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
    """
    return any(operator.name in OPERATORS for operator in tflite.read(flatbuffer).operators)


def lce_interpreter(flatbuffer: bytes, num_threads: int = 1) -> Any:
    """Returns LCE's interpreter of `flatbuffer` at its fastest settings.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
        RuntimeError: It has operators that LCE doesn't know.
        ImportError: The Larq Compute Engine isn't installed, or NumPy is newer than its interpreter takes.
    """
    _require_lces_interpreter()
    import larq_compute_engine as lce

    tflite.read(flatbuffer)  # LCE's interpreter crashes on bytes that are no flatbuffer
    return lce.testing.Interpreter(flatbuffer, num_threads=num_threads, use_indirect_bgemm=True, use_xnnpack=True)


def runtime_interpreter(flatbuffer: bytes, num_threads: int = 1) -> Any:
    """Returns binaryvit-runtime's interpreter of `flatbuffer`.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
        RuntimeError: It has operators that the runtime doesn't know.
        ImportError: binaryvit-runtime isn't installed.
    """
    try:
        runtime = importlib.import_module("binaryvit_runtime")
    except ImportError as error:
        raise ImportError(
            "binaryvit-runtime, which runs fused operators, can't be imported; `pip install ./runtime` in the "
            f"repository installs it. The error was: {error}"
        ) from error
    return runtime.Interpreter(flatbuffer, num_threads=num_threads)
