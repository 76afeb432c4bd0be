"""convert_saved_model: LCE's operators from TensorFlow's own converter, where LCE's isn't installed.

Layers write most of LCE's operators themselves (`composite.py`). What is left is what LCE's converter does after it has
found them, and `optimize` does it to the finished file: it packs a tensor once, pools packed bits, lets a convolution
write packed bits, and makes an activation part of a convolution.

Source: the Larq Compute Engine 0.16, larq_compute_engine/mlir/transforms.
"""

import collections
from typing import Any

import numpy as np

from keras_binaryvit.deploy import flatbuffer

_CUSTOM, _INT32, _SAME, _VALID = 32, 2, 0, 1
# LCE's numbers of fused activations, by the operators of the schema.
_ACTIVATIONS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_ALWAYS, _NEVER = -(2**31), 2**31 - 1  # thresholds of outputs that are always, or never, negative


def convert_saved_model(folder: str) -> bytes:
    """Returns the flatbuffer of a SavedModel whose layers have written LCE's operators themselves, for `optimize`."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.allow_custom_ops = True
    converter.unfold_batchmatmul = True  # as LCE's converter does
    return converter.convert()


def optimize(model: Any) -> None:
    """Makes a `ModelT` whose every LceBconv2d has packed inputs and gives floats what LCE's converter leaves."""
    graph = _Graph(model)
    while graph.step():
        pass
    graph.write()


class _Graph:
    """The main graph of a `ModelT`, whose operators have a name and options while they are changed."""

    def __init__(self, model: Any):
        self._model, self._graph = model, model.subgraphs[0]
        self._tensors, self._operators = self._graph.tensors, self._graph.operators
        self._codes = flatbuffer.operator_names(model)
        for operator in self._operators:
            operator.name = self._codes[operator.opcodeIndex]
            operator.options = flatbuffer.options_of(operator)
            operator.inputs, operator.outputs = (list(map(int, x)) for x in (operator.inputs, operator.outputs))
            if operator.name == "LceBconv2d":
                operator.inputs.append(-1)  # no thresholds

    def step(self) -> bool:
        """Does one rewriting, and says whether there was one to do."""
        producers = {index: operator for operator in self._operators for index in operator.outputs}
        reads = collections.Counter(int(index) for index in self._graph.outputs)
        reads.update(index for operator in self._operators for index in operator.inputs)
        first: dict[int, Any] = {}
        for operator in self._operators:
            if operator.name != "LceQuantize" and operator.name not in _ACTIVATIONS:
                continue
            x = operator.inputs[0]
            before = producers.get(x) if reads[x] == 1 else None
            if operator.name == "LceQuantize" and first.setdefault(x, operator) is not operator:
                self._replace(operator.outputs[0], first[x].outputs[0])
            elif before is None or not self._merge(operator, before):
                continue
            if operator.name != "LceBMaxPool2d":
                self._operators.remove(operator)
            return True
        return False

    def _replace(self, old: int, new: int) -> None:
        """Makes all readers of a tensor read another one."""
        for reader in self._operators:
            reader.inputs = [new if index == old else index for index in reader.inputs]
        self._graph.outputs = [new if index == old else int(index) for index in self._graph.outputs]

    def _merge(self, operator: Any, before: Any) -> bool:
        """Makes an operator one with that which computes its only input, and says whether that was possible."""
        packs = operator.name == "LceQuantize"
        if packs and before.name == "MAX_POOL_2D":
            return self._pool_bits(operator, before)
        if before.name != "LceBconv2d" or before.options["pad_values"] != (before.options["padding"] == _SAME):
            return False
        if packs:
            self._write_bits(before)
        elif not self._activate(operator, before):
            return False
        before.outputs = operator.outputs
        return True

    def _pool_bits(self, pack: Any, pool: Any) -> bool:
        """Packs before a pooling rather than after it."""
        options = pool.builtinOptions
        if options.fusedActivationFunction:
            return False
        x, bits = self._tensors[pool.inputs[0]], self._tensors[pack.outputs[0]]
        packed = self._new_tensor([*x.shape[:-1], bits.shape[-1]], bits.name)
        pool.builtinOptions, pool.builtinOptionsType = None, 0
        pack.name, pack.inputs = "LceBMaxPool2d", [packed]
        pack.options = {
            "padding": options.padding,
            "stride_width": options.strideW,
            "stride_height": options.strideH,
            "filter_width": options.filterWidth,
            "filter_height": options.filterHeight,
        }
        pool.name, pool.outputs = "LceQuantize", [packed]
        return True

    def _activate(self, operator: Any, convolution: Any) -> bool:
        multiplier, bias = (self._constant(index) for index in convolution.inputs[2:4])
        fused = convolution.options["fused_activation_function"]
        if fused or np.any(multiplier != 1) or np.any(bias != 0):
            return False
        convolution.options["fused_activation_function"] = _ACTIVATIONS[operator.name]
        return True

    def _write_bits(self, convolution: Any) -> None:
        """Gives a convolution thresholds on its sums in the place of a multiplier and a bias."""
        x, kernel, *transform, _ = convolution.inputs
        name, values = self._tensors[kernel].name, self._constant(kernel)
        # Each group reads its own words of the input.
        groups = self._tensors[x].shape[-1] // values.shape[-1]
        channels = convolution.options["channels_in"] // groups
        multiplier, bias = map(self._constant, transform)
        fused = convolution.options["fused_activation_function"]
        limits = _thresholds(values.shape[1] * values.shape[2] * channels, multiplier, bias, fused)
        flipped = np.where((multiplier < 0)[:, None, None, None], values ^ _used_bits(channels), values)
        convolution.inputs = [x, self._constant_tensor(flipped, name), -1, -1, self._constant_tensor(limits, name)]

    def _constant(self, index: int) -> np.ndarray:
        tensor = self._tensors[index]
        data = bytes(self._model.buffers[tensor.buffer].data)
        return np.frombuffer(data, "<i4" if tensor.type == _INT32 else "<f4").reshape(tensor.shape)

    def _constant_tensor(self, values: np.ndarray, name: bytes) -> int:
        # A new buffer: filters of several convolutions may share one.
        data = np.frombuffer(values.astype("<i4").tobytes(), np.uint8)
        self._model.buffers.append(flatbuffer.schema().BufferT(data=data))
        return self._new_tensor(values.shape, name, len(self._model.buffers) - 1)

    def _new_tensor(self, shape: Any, name: bytes, buffer: int = 0) -> int:
        sides = [int(side) for side in shape]
        self._tensors.append(flatbuffer.schema().TensorT(shape=sides, type=_INT32, buffer=buffer, name=name))
        return len(self._tensors) - 1

    def write(self) -> None:
        """Puts the operators back into the model, without the constants that nothing reads any more."""
        for operator in self._operators:
            if operator.name.startswith("Lce"):
                operator.customOptions = flatbuffer.as_options(operator.options)
            if operator.name not in self._codes:
                self._codes.append(operator.name)
                code = flatbuffer.schema().OperatorCodeT(
                    deprecatedBuiltinCode=_CUSTOM, customCode=operator.name.encode(), version=1, builtinCode=_CUSTOM
                )
                self._model.operatorCodes.append(code)
            operator.opcodeIndex = self._codes.index(operator.name)
        used = {int(index) for index in self._graph.inputs}
        used.update(index for operator in self._operators for index in (*operator.inputs, *operator.outputs))
        buffers = {self._tensors[index].buffer for index in used - {-1}}
        buffers.update(tensor.buffer for graph in self._model.subgraphs[1:] for tensor in graph.tensors)  # of loops
        for tensor in self._tensors:
            if tensor.buffer not in buffers:
                self._model.buffers[tensor.buffer].data = None
                tensor.buffer = 0


def _used_bits(channels):
    """Returns a mask for each word of a position's channels: the last word may have bits left over."""
    mask = np.full(-(-channels // 32), -1, np.int32)
    if channels % 32:
        mask[-1] = (1 << channels % 32) - 1
    return mask


def _thresholds(size, multiplier, bias, fused):
    """Returns for each unit how many of `size` differing bits its output is still positive with, in float32, as LCE
    computes it; `fused` is LCE's number of the activation between sum and multiplier."""
    low, high = {0: (-size, size), 1: (0, size), 2: (-1, 1), 3: (0, 6)}[fused]
    magnitude = np.abs(multiplier)
    with np.errstate(all="ignore"):
        start = np.where(multiplier < 0, -high, low).astype("f4") * magnitude + bias
        end = np.where(multiplier < 0, -low, high).astype("f4") * magnitude + bias
        threshold = np.floor(0.5 * (bias / magnitude + np.float32(size)).astype("f8"))
    always = ((start < 0) & (end < 0)) | ((multiplier == 0) & (bias < 0))
    never = ((start >= 0) & (end >= 0)) | ((multiplier == 0) & ~always)
    return np.where(always, _ALWAYS, np.where(never, _NEVER, threshold)).astype(np.int64)
