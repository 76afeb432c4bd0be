"""convert and predict: the Larq Compute Engine's converter and interpreter."""

import collections
import importlib
import tempfile

import keras
import numpy as np

from keras_binaryvit.deploy.freeze import binary_layers, freeze


class ConversionError(RuntimeError):
    """The flatbuffer isn't what the model promised."""


def _require_lce():
    try:
        return importlib.import_module("larq_compute_engine")
    except ImportError as error:
        raise ImportError(
            "The Larq Compute Engine can't be imported; `pip install 'keras-binaryvit[lce]'` installs it on Linux "
            f"x86-64 (Python 3.10 to 3.12). The error was: {error}"
        ) from error


def convert(model: keras.Model, ops: str = "lce") -> bytes:
    """Returns the `.tflite` flatbuffer of `model`, for batches of one image.

    Args:
        model: A model of any layers, trained or frozen.
        ops: `"lce"`: what an unmodified Larq Compute Engine runs.

    Raises:
        ValueError: `ops` is unknown, a side of the input is unknown, or the model can't be frozen.
        ConversionError: A binary layer didn't become a binary convolution.
        ImportError: The Larq Compute Engine isn't installed.
        RuntimeError: The Keras backend isn't TensorFlow.
    """
    if ops != "lce":
        raise ValueError(f"ops must be 'lce'. Received: ops={ops!r}")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Conversion needs the TensorFlow backend; it is {keras.backend.backend()!r}. Save the model and run "
            "`python converters/to_lce.py model.keras model.tflite`, or set KERAS_BACKEND=tensorflow: a .keras file "
            "is the same for all backends."
        )
    lce = _require_lce()
    import tensorflow as tf

    frozen = freeze(model)
    for tensor in frozen.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(f"Every side of the input but the batch must be known. Received: shape {tensor.shape}")
    signature = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, tensor.name) for tensor in frozen.inputs]
    with tempfile.TemporaryDirectory() as folder:
        frozen.export(folder, input_signature=signature, verbose=False)
        flatbuffer = lce.convert_saved_model(folder)

    binary = len(binary_layers(frozen))
    converted = count_ops(flatbuffer)["LceBconv2d"]
    if converted < binary:
        raise ConversionError(
            f"The model has {binary} binary layers, but only {converted} became LceBconv2d; the others would run in "
            "float, slow and large. The LCE converter binarises products of a sign (+-1, as ste_sign and approx_sign "
            "give; not the 0/1 of ste_heaviside), of unpadded maps or maps padded with 1."
        )
    return flatbuffer


def count_ops(flatbuffer: bytes) -> collections.Counter:
    """Returns how many operators of each type `flatbuffer` has, by name such as `"CONV_2D"` or `"LceBconv2d"`.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    if len(flatbuffer) < 8 or flatbuffer[4:8] != b"TFL3":
        raise ValueError(f"This is no TFLite flatbuffer: {len(flatbuffer)} bytes that begin {flatbuffer[:8]!r}")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
    builtin = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    names = [
        code.customCode.decode() if code.customCode else builtin[max(code.builtinCode, code.deprecatedBuiltinCode)]
        for code in model.operatorCodes
    ]
    return collections.Counter(names[op.opcodeIndex] for graph in model.subgraphs for op in graph.operators)


def predict(flatbuffer: bytes, images: np.ndarray, num_threads: int = 1, progress: bool = False) -> np.ndarray:
    """Returns the outputs of `flatbuffer` for `images` in LCE's interpreter, one image after the other.

    Args:
        flatbuffer: A model with one input and one output, as `convert` gives.
        images: `(batch, height, width, channels)`, normalised as in training.
        num_threads: Threads of the interpreter.
        progress: Whether to show a progress bar on stderr.

    Returns:
        `(batch, num_classes)`, float32.

    Raises:
        ValueError: The images have another shape than the model takes, or values that aren't finite.
        ImportError: The Larq Compute Engine isn't installed.
    """
    lce = _require_lce()
    images = np.asarray(images, np.float32)
    count_ops(flatbuffer)  # LCE's interpreter crashes on bytes that are no flatbuffer
    interpreter = lce.testing.Interpreter(flatbuffer, num_threads=num_threads, use_xnnpack=True)
    expected = tuple(interpreter.input_shapes[0][1:])
    if images.ndim != len(expected) + 1 or images.shape[1:] != expected:
        raise ValueError(f"The flatbuffer takes images of shape {expected}. Received: {images.shape[1:]}")
    if not np.isfinite(images).all():
        raise ValueError("The images hold values that are not finite (NaN or infinity).")
    batches = images[:, None]
    if progress:
        import tqdm

        batches = tqdm.tqdm(batches, desc="LCE", unit="image")
    return np.concatenate([np.atleast_2d(interpreter.predict(image)) for image in batches])
