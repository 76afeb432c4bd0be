"""The interpreters of converted models: LCE's, and that of binaryvit-runtime."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy.runtime_layers import OPERATORS

# A batch for each input: an array for one input; a list or tuple in the file's order, or a dict by the inputs' names.
Inputs = np.ndarray | Sequence[Any] | Mapping[str, Any]


def run(flatbuffer: bytes, inputs: Inputs, num_threads: int = 1, progress: bool = False) -> Any:
    """Returns the outputs of `flatbuffer`, which computes one batch of its size after the other.

    LCE's interpreter runs it where it can, else binaryvit-runtime: see `interpreter_of`.

    Args:
        flatbuffer: A model, as `convert` gives.
        inputs: `(batch, ...)`, prepared as in training: one array; for several inputs a list in the file's order, a
            dict by their names, or either of these nested.
        num_threads: Threads of the interpreter.
        progress: Whether to show a progress bar on stderr.

    Returns:
        `(batch, ...)` of the output's type; for several outputs a list in the file's order.

    Raises:
        TypeError: An input has another type than the model takes: integers for floats, or the other way round.
        ValueError: An input has another shape than the model takes, or values that aren't finite.
        ImportError: Neither of the interpreters is installed.
    """
    model = flatbuffers.read(flatbuffer)
    batches = prepared(model, inputs)
    interpreter = interpreter_of(flatbuffer, num_threads)
    size = model.inputs[0].shape[0] if model.inputs[0].shape else 1
    steps: Any = range(0, len(batches[0]), size)
    if progress:
        import tqdm

        steps = tqdm.tqdm(steps, desc="Running", unit="batch")
    results = [outputs_of(interpreter, [batch[start : start + size] for batch in batches]) for start in steps]
    joined = [np.concatenate(arrays) for arrays in zip(*results, strict=True)]
    return joined[0] if len(joined) == 1 else joined


def outputs_of(interpreter: Any, batches: list[np.ndarray]) -> list[np.ndarray]:
    """Returns all outputs of an interpreter for one batch for each of its inputs."""
    if hasattr(interpreter, "interpreter"):  # LCE's own `predict` is for batches of one
        return interpreter.interpreter.predict(batches)
    outputs = interpreter.predict(batches)
    return outputs if isinstance(outputs, list) else [outputs]


def prepared(model: flatbuffers.Model, inputs: Inputs) -> list[np.ndarray]:
    """Returns an array for each input of `model`, of its type.

    Raises:
        TypeError: An input has another type than the model takes.
        ValueError: There are other inputs than the model takes, or of other shapes, or values that aren't finite.
    """
    names = [tensor.name for tensor in model.inputs]
    if isinstance(inputs, Mapping) and set(inputs) == set(names):
        arrays = [np.asarray(inputs[name]) for name in names]
    else:
        arrays = [np.asarray(array) for array in keras.tree.flatten(inputs)]
        if len(arrays) != len(names) and len(names) == 1:
            arrays = [np.asarray(inputs)]  # a list of images
    if len(arrays) != len(names):
        raise ValueError(f"The model takes {len(names)} inputs, {', '.join(names)}. Received: {len(arrays)} arrays")
    for tensor, array in zip(model.inputs, arrays, strict=True):
        if array.ndim != len(tensor.shape) or array.shape[1:] != tensor.shape[1:]:
            raise ValueError(
                f"The input {tensor.name!r} takes arrays of shape {tensor.shape[1:]}. Received: {array.shape[1:]}"
            )
        if not len(array) or len(array) != len(arrays[0]) or len(array) % tensor.shape[0]:
            raise ValueError(
                f"The model takes batches of {tensor.shape[0]}, as many for each input. Received: {len(array)} for "
                f"the input {tensor.name!r}"
            )
        if np.issubdtype(array.dtype, np.floating) != tensor.dtype.startswith("float"):
            raise TypeError(
                f"The input {tensor.name!r} takes {tensor.dtype}. Received: {array.dtype}. Pixels become floats by the "
                "preprocessing of training, such as model.preprocessor(images)."
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(f"The input {tensor.name!r} has values that are not finite (NaN or infinity).")
    return [array.astype(tensor.dtype) for tensor, array in zip(model.inputs, arrays, strict=True)]


def random_inputs(model: flatbuffers.Model, batches: int = 1) -> list[np.ndarray]:
    """Returns random arrays for the inputs of `model`."""
    rng = np.random.default_rng(0)
    shapes = [(batches * tensor.shape[0], *tensor.shape[1:]) for tensor in model.inputs]
    arrays = [random_array(rng, shape, tensor.dtype) for shape, tensor in zip(shapes, model.inputs, strict=True)]
    return [array.astype(tensor.dtype) for array, tensor in zip(arrays, model.inputs, strict=True)]


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Returns float64 or int64 values for a type: normal floats, pixels for uint8, else indices of any table."""
    return rng.normal(size=shape) if "float" in dtype else rng.integers(0, 256 if dtype == "uint8" else 2, shape)


def interpreter_of(flatbuffer: bytes, num_threads: int = 1) -> Any:
    """Returns an interpreter of `flatbuffer`: binaryvit-runtime's for fused operators and where LCE's can't run.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
        ImportError: Neither of the interpreters is installed.
    """
    return (runtime_interpreter if is_fused(flatbuffer) or not has_lce() else lce_interpreter)(flatbuffer, num_threads)


def is_fused(flatbuffer: bytes) -> bool:
    """Whether `flatbuffer` has fused operators."""
    return any(operator.name in OPERATORS for operator in flatbuffers.read(flatbuffer).operators)


def has_lce() -> bool:
    """Whether LCE's interpreter can run here: it was compiled for NumPy 1, and NumPy 2 gives it empty inputs."""
    numpy_1 = np.lib.NumpyVersion(np.__version__) < "2.0.0"
    return numpy_1 and importlib.util.find_spec("larq_compute_engine") is not None


def lce_interpreter(flatbuffer: bytes, num_threads: int = 1) -> Any:
    """Returns LCE's interpreter of `flatbuffer` at its fastest settings.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
        RuntimeError: It has operators that LCE doesn't know.
        ImportError: The Larq Compute Engine isn't installed, or NumPy is newer than its interpreter takes.
    """
    if not has_lce():
        raise ImportError(
            "LCE's interpreter needs the Larq Compute Engine, which has wheels for Python 3.11 and 3.12 on 64-bit x86 "
            f"Linux, and NumPy 1 (installed: {np.__version__}): pip install 'keras-binaryvit[lce]'."
        )
    import larq_compute_engine as lce

    flatbuffers.read(flatbuffer)  # LCE's interpreter crashes on bytes that are no flatbuffer
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
            "binaryvit-runtime, which runs converted models, can't be imported; `pip install ./runtime` in the "
            f"repository installs it. The error was: {error}"
        ) from error
    return runtime.Interpreter(flatbuffer, num_threads=num_threads)


def observing_interpreter(flatbuffer: bytes) -> Any:
    """Returns a LiteRT interpreter of `flatbuffer`, with allocated tensors, that keeps every tensor it computes."""
    runtime_interpreter(flatbuffer)  # says what is missing or wrong
    litert, runtime = (importlib.import_module(name) for name in ("ai_edge_litert.interpreter", "binaryvit_runtime"))
    interpreter = litert.Interpreter(
        model_content=flatbuffer,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_delegates=[runtime.load_delegate(1)],
    )
    interpreter.allocate_tensors()
    return interpreter
