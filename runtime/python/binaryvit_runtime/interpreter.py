"""Interpreter and load_delegate: a LiteRT interpreter that knows the operators of binary networks."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from binaryvit_runtime.files import map_model
from binaryvit_runtime.profile import LIBRARY, OperatorTime, kernels_of, read_profile


def include_path() -> Path:
    """Returns the folder of `binaryvit_runtime.h`, for programs in C and C++."""
    return Path(__file__).with_name("include")


def library_path() -> Path:
    """Returns the path of the delegate's shared library, for programs in other languages than Python.

    Raises:
        RuntimeError: The package holds no library, because it wasn't installed with pip.
    """
    if not LIBRARY.exists():
        raise RuntimeError(f"{LIBRARY} doesn't exist; `pip install ./runtime` compiles it.")
    return LIBRARY


def load_delegate(num_threads: int | None = None, profile: bool = False) -> Any:
    """Returns a delegate for `experimental_delegates` of a LiteRT interpreter; each interpreter needs its own.

    It runs in `ai_edge_litert.interpreter.Interpreter` and in `tf.lite.Interpreter`.

    Args:
        num_threads: Threads of the binary operators; by default as many as the interpreter has.
        profile: Whether to measure how long each operator takes.

    Raises:
        ValueError: `num_threads` isn't between 1 and 64, or the environment variable `BINARYVIT_KERNELS` names kernels
            that are unknown or don't run on this processor.
        RuntimeError: The package holds no library, because it wasn't installed with pip.
    """
    from ai_edge_litert import interpreter as litert

    options = {} if num_threads is None else {"num_threads": _count(num_threads)}
    options["profile"] = int(profile)
    return litert.load_delegate(os.fspath(library_path()), options)


def _count(num_threads):
    count = operator.index(num_threads)
    if not 1 <= count <= 64:
        raise ValueError(f"num_threads must be between 1 and 64. Received: num_threads={num_threads}")
    return count


class Interpreter:
    """Runs a `.tflite` model: binary operators in this package's delegate, all others in LiteRT and XNNPACK.

    An interpreter belongs to one thread at a time; several of them run side by side.

    Args:
        model: Path of a `.tflite` file, which is mapped into memory and must stay as it is, or its bytes.
        num_threads: Threads that share an inference.
        profile: Whether to measure how long each binary operator takes.

    Attributes:
        seconds: What the inferences of the last `predict` took, without the copies of inputs and outputs.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no model, or `num_threads` isn't between 1 and 64.
        RuntimeError: The model has an operator that is unknown, or whose options or shapes are wrong; the message names
            it.
    """

    def __init__(self, model: str | os.PathLike | bytes, num_threads: int = 1, profile: bool = False):
        from ai_edge_litert import interpreter as litert

        count = _count(num_threads)
        self._delegate = load_delegate(count, profile)
        content = map_model(model)
        source = {"model_content": content} if isinstance(content, bytes) else {"model_path": os.fspath(model)}
        self._interpreter = litert.Interpreter(**source, num_threads=count, experimental_delegates=[self._delegate])
        self.seconds = 0.0
        self._interpreter.allocate_tensors()
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each input, with a batch of one image as the model was converted."""
        return [tuple(int(size) for size in detail["shape"]) for detail in self._inputs]

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each output."""
        return [tuple(int(size) for size in detail["shape"]) for detail in self._outputs]

    @property
    def input_dtypes(self) -> list[np.dtype]:
        """Type of each input."""
        return [np.dtype(detail["dtype"]) for detail in self._inputs]

    @property
    def kernels(self) -> str:
        """Name of the kernels that the binary operators run, such as `"avx2"` or `"neon"`."""
        return kernels_of(self._delegate)

    def profile(self) -> list[OperatorTime]:
        """Returns what each binary operator took in all inferences so far, in the graph's order.

        It is empty unless the interpreter was made with `profile=True`.
        """
        return read_profile(self._delegate)

    @property
    def input_names(self) -> list[str]:
        """Name of each input."""
        return [detail["name"] for detail in self._inputs]

    @property
    def output_names(self) -> list[str]:
        """Name of each output."""
        return [detail["name"] for detail in self._outputs]

    def predict(self, inputs: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]) -> Any:
        """Returns the model's outputs, one batch of its size after the other.

        Args:
            inputs: `(batch, ...)`, preprocessed as in training: one array; for several inputs a list in the model's
                order, or a dict by their names.

        Returns:
            `(batch, ...)` of the output's type; a list of these for several outputs.

        Raises:
            TypeError: An input is of integers where the model takes floats, or the other way round.
            ValueError: There are other inputs than the model takes, or of other shapes or with values beyond its type.
        """
        if isinstance(inputs, Mapping):
            if set(inputs) != set(self.input_names):
                raise ValueError(f"The model takes the inputs {self.input_names}. Received: {list(inputs)}")
            inputs = [inputs[name] for name in self.input_names]
        arrays = [inputs] if isinstance(inputs, np.ndarray) else inputs
        if len(arrays) != len(self._inputs):
            arrays = [np.asarray(inputs)] if len(self._inputs) == 1 else arrays
        if len(arrays) != len(self._inputs):
            raise ValueError(f"The model takes {len(self._inputs)} inputs. Received: {len(arrays)}")
        batches = [self._batches(detail, np.asarray(array)) for detail, array in zip(self._inputs, arrays)]
        if len({len(batch) for batch in batches}) > 1:
            raise ValueError(f"All inputs must be as long. Received: {[len(np.asarray(array)) for array in arrays]}")
        self.seconds = 0.0
        results = [self._run(batch) for batch in zip(*batches)]
        outputs = [np.concatenate(parts) for parts in zip(*results)]
        return outputs[0] if len(outputs) == 1 else outputs

    def _batches(self, detail, array):
        """Returns an array for one input as `(batches, batch, ...)`."""
        size, *expected = (int(side) for side in detail["shape"])
        if array.ndim != len(expected) + 1 or list(array.shape[1:]) != expected:
            raise ValueError(
                f"The input {detail['name']!r} takes arrays of shape {tuple(expected)}. Received: {array.shape[1:]}"
            )
        if len(array) == 0 or len(array) % size:
            raise ValueError(f"The model takes batches of {size}, 1 or more. Received: {len(array)}")
        dtype = np.dtype(detail["dtype"])
        if (array.dtype.kind == "f") != (dtype.kind == "f"):
            raise TypeError(
                f"The input {detail['name']!r} takes {dtype}. Received: {array.dtype}. Classifier prepares pixels."
            )
        result = array.astype(dtype)
        if dtype.kind != "f" and not np.array_equal(result, array):
            raise ValueError(
                f"The input {detail['name']!r} takes {dtype}. Received: {array.dtype}, with values beyond it."
            )
        return result.reshape(-1, size, *expected)

    def _run(self, batch):
        for detail, array in zip(self._inputs, batch):
            self._interpreter.set_tensor(detail["index"], array)
        start = time.perf_counter()
        self._interpreter.invoke()
        self.seconds += time.perf_counter() - start
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs]
