"""export_c: a converted model as one C99 file for microcontrollers.

`c_kernels.h` has the arithmetic; here are the constants, the calls, and where in the scratch memory values stand.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy.flatbuffer import Tensor
from keras_binaryvit.deploy.graph import ConversionError
from keras_binaryvit.deploy.inspect import inspect, option, printable
from keras_binaryvit.deploy.metadata import read_metadata
from keras_binaryvit.deploy.runtime_layers import pooling_edges

# Of all kernels together, with -O2 for a Cortex-M4; docs/microcontrollers.md has the figures.
_CODE_BYTES = 8_000


@dataclasses.dataclass(frozen=True)
class CExport:
    """A model in C.

    Attributes:
        source: The header.
        constant_bytes: Flash that the constants take.
        code_bytes: Flash that the code takes, an estimate.
        scratch_bytes: RAM that the caller passes.
        input_bytes: RAM of the input, which the caller has too.
    """

    source: str = dataclasses.field(repr=False)
    constant_bytes: int
    code_bytes: int
    scratch_bytes: int
    input_bytes: int


def export_c(flatbuffer: bytes, name: str = "model") -> CExport:
    """Returns a model as a C99 header that needs no library, no allocation and no file.

    Its function `NAME_run` takes one image and gives the model's outputs. The image is uint8 pixels where the
    flatbuffer says how to prepare images, else float as in training. The fused operators give the bits of
    binaryvit-runtime; docs/microcontrollers.md says more.

    Args:
        flatbuffer: What `convert(model, ops="fused")` gives, for one image.
        name: What the names in the header begin with.

    Raises:
        ValueError: The bytes are no TFLite flatbuffer, or the name isn't one of C.
        ConversionError: The model has other inputs, outputs or operators than there are in C; the message names the
            layer.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"name must be letters, digits and underscores, a letter first. Received: name={name!r}")
    model = flatbuffers.read(flatbuffer)
    if len(model.inputs) != 1 or len(model.outputs) != 1 or model.inputs[0].shape[:1] != (1,):
        raise ConversionError(
            "Only a model with one input and one output, for one image, can be exported to C. This one takes "
            f"{[tensor.shape for tensor in model.inputs]} and gives {[tensor.shape for tensor in model.outputs]}."
        )
    return _Exporter(name, flatbuffer, model).run()


@dataclasses.dataclass
class _Space:
    """Values in the scratch memory, from one step to another."""

    size: int
    first: int
    last: int
    offset: int = 0


class _Exporter:
    def __init__(self, name: str, flatbuffer: bytes, model: flatbuffers.Model):
        self.name, self.model = name, model
        self.metadata = read_metadata(flatbuffer)
        self.origins = [operator.origin for operator in inspect(flatbuffer).operators]
        graphs = flatbuffers.unpack(flatbuffer).subgraphs
        self.options = [operator.builtinOptions for graph in graphs for operator in graph.operators]
        self.constants: dict[tuple[str, bytes], str] = {}
        self.declarations: list[str] = []
        self.calls: list[tuple[str, tuple, str]] = []  # kernel, arguments, the layer that it comes from
        self.spaces: list[_Space] = []
        self.space_of: dict[int, _Space | str] = {}  # by the tensor's identity; a text is the caller's memory
        self.last_use = {
            id(tensor): step for step, operator in enumerate(model.operators) for tensor in operator.inputs if tensor
        }
        self.bit_words = 1
        self.step, self.origin = -1, "preprocessing"

    def run(self) -> CExport:
        (image,), (output,) = self.model.inputs, self.model.outputs
        takes_pixels = "mean" in self.metadata
        if takes_pixels:
            mean, std = (np.asarray(self.metadata[key], np.float32) for key in ("mean", "std"))
            table = self._floats(np.stack([1 / (255 * std), -mean / std]))
            space = self._room(image.size, self.last_use.get(id(image), 0))
            self.space_of[id(image)] = space
            self._add_call("normalize", "input", image.size // len(mean), len(mean), table, space)
        else:
            self.space_of[id(image)] = "input"
        self.space_of[id(output)] = "output"
        for step, operator in enumerate(self.model.operators):
            self.step, self.operator, self.origin = step, operator, self.origins[step] or operator.name
            write = _WRITERS.get(operator.name)
            if write is None:
                raise self._error(f"its operator is {operator.name}; only {', '.join(sorted(_WRITERS))} can be")
            inputs, (output,) = [tensor for tensor in operator.inputs if tensor], operator.outputs
            if output.dtype != "float32":
                raise self._error(f"its output is {output.dtype}, not float32")
            write(self, inputs, output)
            self._activate(output)
        _place(self.spaces)
        return self._rendered(takes_pixels)

    def _error(self, what: str) -> ConversionError:
        return ConversionError(
            f"The layer {printable(self.origin)!r} can't be exported to C: {what}. Use convert(model, ops='fused') "
            "with float32 layers and constants."
        )

    # ---- values

    def _room(self, size: int, last: int | None = None) -> _Space:
        """Returns room for this step, or until the step `last`."""
        space = _Space(size, self.step, self.step if last is None else last)
        self.spaces.append(space)
        return space

    def _read(self, tensor: Tensor) -> "_Space | str":
        """Returns where an activation stands."""
        if id(tensor) not in self.space_of:
            raise self._error("an input that must be computed is a constant")
        return self.space_of[id(tensor)]

    def _write(self, tensor: Tensor, *over: Tensor) -> "_Space | str":
        """Returns where an output goes: over one of the inputs `over` that nothing else reads, where there is one."""
        if id(tensor) in self.space_of:  # the model's output
            return self.space_of[id(tensor)]
        last = self.last_use.get(id(tensor), self.step)
        for candidate in over:
            space = self.space_of[id(candidate)]
            if isinstance(space, _Space) and self.last_use[id(candidate)] == self.step:
                space.last = last
                break
        else:
            space = self._room(tensor.size, last)
        self.space_of[id(tensor)] = space
        return space

    def _constant(self, tensor: Tensor, *shape: int, dtype: str = "float32") -> np.ndarray:
        if (tensor.dtype, tensor.shape, len(tensor.data)) != (dtype, shape, 4 * tensor.size):
            raise self._error(
                f"one of its constants must be {dtype} of shape {shape}, and is {tensor.dtype} of shape {tensor.shape} "
                f"with {len(tensor.data)} bytes"
            )
        return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)

    # ---- constants

    def _floats(self, values: np.ndarray) -> str:
        if not np.isfinite(values).all():
            raise self._error("it has constants that aren't finite")
        # Without -0, as in the runtime: no sum with a constant is -0 then.
        return self._declared("float", np.asarray(values, np.float32) + np.float32(0))

    def _bits(self, tensor: Tensor, *shape: int) -> str:
        return self._declared("uint32_t", self._constant(tensor, *shape, dtype="int32").view(np.uint32))

    def _declared(self, kind: str, values: np.ndarray) -> str:
        key = kind, values.tobytes()
        if key not in self.constants:
            self.constants[key] = name = f"{self.name}_constant_{len(self.constants)}"
            literals = ", ".join(_literal(kind, value) for value in values.ravel().tolist())
            lines = "\n".join("  " + line for line in re.findall(r"\S.{0,116}(?:,|$)", literals))
            self.declarations.append(f"static const {kind} {name}[{values.size}] = {{\n{lines}\n}};")
        return self.constants[key]

    # ---- calls

    def _add_call(self, kernel: str, *arguments: Any) -> None:
        self.calls.append((kernel, arguments, printable(self.origin).replace("*/", "* /")))

    def _needs_bits(self, words: int) -> str:
        self.bit_words = max(self.bit_words, words)
        return "scratch->bits"

    def _feed_forward(self, inputs: list[Tensor], output: Tensor) -> None:
        x, kernel_1, hidden, kernel_2, parameters, *residual = inputs
        channels, units = x.shape[-1], hidden.shape[-1]
        table, hidden_table = self._constant(parameters, 7, channels), self._constant(hidden, 4, units)
        self._add_call(
            "feed_forward",
            self._read(x),
            self._read(residual[0]) if residual else "0",
            x.size // channels,
            channels,
            units // channels,
            self._bits(kernel_1, units, -(-channels // 32)),
            self._floats(hidden_table[:3].T),
            self._floats(hidden_table[3]),
            self._bits(kernel_2, channels, -(-units // 32)),
            self._floats(table[2:5].T),
            self._floats(table[[0, 1, 5, 6]]),
            self._room(channels + units),
            self._needs_bits(-(-units // 32)),
            self._write(output, x, *residual),
        )

    def _attention(self, inputs: list[Tensor], output: Tensor) -> None:
        x, kernels, parameters, threshold = inputs
        heads, reduction, residual = (option(self.operator, name) for name in ("heads", "reduction", "residual"))
        _, height, width, channels = x.shape
        keys, head_dim = height // reduction * (width // reduction), channels // heads
        key_words, head_words = -(-keys // 32), -(-head_dim // 32)
        count = 5 if reduction > 1 else 4
        table = self._constant(parameters, 9 + 4 * count, channels)
        of_kernels = np.concatenate([table[1:17], table[25:]]).reshape(-1, 4, channels)  # threshold, multiplier, ...
        thresholds = of_kernels[:, 0]
        exponentials = np.array([math.exp(-2 * count / math.sqrt(head_dim)) for count in range(head_dim + 1)])
        self._add_call(
            "attention",
            self._read(x),
            *(height, width, channels, heads, reduction, residual),
            self._bits(kernels, count, channels, -(-channels // 32)),
            self._floats(of_kernels[:, 1:].swapaxes(1, 2)),
            self._floats(np.concatenate([table[:1], thresholds[:4], table[17:25], thresholds[4:]])),
            self._declared("double", exponentials),
            float(self._constant(threshold, 1)[0]).hex(),
            self._room((keys + 3) * channels),
            self._needs_bits(
                -(-channels // 32) + head_words * (1 + heads * keys) + channels * (key_words + 1) + key_words + keys
            ),
            self._write(output, x),
        )

    def _pooling(self, inputs: list[Tensor], output: Tensor) -> None:
        x, parameters = inputs
        vertical, residual = (option(self.operator, name) for name in ("vertical", "residual"))
        _, height, width, channels = x.shape
        table = self._constant(parameters, *parameters.shape[:1], channels)
        rows, columns = pooling_edges(table, vertical, height, width)
        self._add_call(
            "pooling",
            self._read(x),
            *(height, width, channels, vertical, len(table) - 4 - vertical, residual),
            self._floats(table[3:] * table[0]),
            self._floats(rows),
            self._floats(columns),
            self._room(channels),
            self._write(output),
        )

    def _patch_merging(self, inputs: list[Tensor], output: Tensor) -> None:
        x, kernel, table, outputs = inputs
        _, height, width, channels = x.shape
        units = output.shape[-1]
        self._add_call(
            "patch_merging",
            self._read(x),
            *(height, width, channels, units),
            self._bits(kernel, units, 4 * -(-channels // 32)),
            self._floats(self._constant(outputs, 3, units).T),
            self._floats(self._constant(table, 2, channels)),
            self._room(4 * channels),
            self._needs_bits(4 * -(-channels // 32)),
            self._write(output),
        )

    def _convolution(self, inputs: list[Tensor], output: Tensor) -> None:
        x, kernel, bias = inputs
        options = self.options[self.step]
        _, height, width, channels = x.shape
        filters, rows, columns, depth = kernel.shape
        _, output_height, output_width, _ = output.shape
        if depth != channels or (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            raise self._error("its convolution has groups or dilations")
        strides = options.strideH, options.strideW
        missing = [0, 0]
        if flatbuffers.names("Padding")[options.padding] == "SAME":
            ends = (output_height - 1) * strides[0] + rows, (output_width - 1) * strides[1] + columns
            missing = [max(ends[0] - height, 0), max(ends[1] - width, 0)]
        self._add_call(
            "convolution",
            self._read(x),
            *(height, width, channels),
            self._floats(self._constant(kernel, *kernel.shape)),
            self._floats(self._constant(bias, filters)),
            *(rows, columns, *strides, missing[0] // 2, missing[1] // 2, output_height, output_width, filters),
            self._room(rows * columns * channels),
            self._write(output),
        )

    def _activate(self, output: Tensor) -> None:
        number = getattr(self.options[self.step], "fusedActivationFunction", 0)  # fused operators have none
        activation = flatbuffers.names("ActivationFunctionType")[number]
        if activation == "RELU":
            self._add_call("relu", self._read(output), output.size)
        elif activation != "NONE":
            raise self._error(f"it has the activation {activation}")

    def _dense(self, inputs: list[Tensor], output: Tensor) -> None:
        x, kernel, *bias = inputs
        units = output.size
        self._add_call(
            "dense",
            self._read(x),
            x.size,
            self._floats(self._constant(kernel, units, x.size)),
            self._floats(self._constant(bias[0], units) if bias else np.zeros(units)),
            units,
            self._write(output),
        )

    def _add(self, inputs: list[Tensor], output: Tensor) -> None:
        x, y = sorted(inputs, key=lambda tensor: bool(tensor.data))  # a constant comes second
        shape = tuple(itertools.dropwhile(lambda side: side == 1, y.shape))
        if x.shape[len(x.shape) - len(shape) :] != shape:
            raise self._error(f"it adds shapes {x.shape} and {y.shape}")
        self._add_call(
            "add",
            self._read(x),
            x.size,
            self._floats(self._constant(y, *y.shape)) if y.data else self._read(y),
            y.size,
            self._write(output, x),
        )

    def _mean(self, inputs: list[Tensor], output: Tensor) -> None:
        x, axes = inputs
        channels = x.shape[-1]
        if output.size != channels or sorted(self._constant(axes, 2, dtype="int32").tolist()) != [1, 2]:
            raise self._error("it is no mean over all positions")
        self._add_call("mean", self._read(x), x.size // channels, channels, self._write(output))

    # ---- the header

    def _rendered(self, takes_pixels: bool) -> CExport:
        (image,), (output,) = self.model.inputs, self.model.outputs
        reals = max((space.offset + space.size for space in self.spaces), default=1)
        scratch_bytes = 4 * (reals + self.bit_words)
        constant_bytes = sum(len(content) for _, content in self.constants)
        names = self.metadata.get("labels", [])
        upper = self.name.upper()

        def text(argument: Any) -> str:
            return f"scratch->reals + {argument.offset}" if isinstance(argument, _Space) else str(argument)

        calls = "\n".join(
            f"  bvit_{kernel}({', '.join(map(text, arguments))}); /* {origin} */"
            for kernel, arguments, origin in self.calls
        )
        kind = "uint8_t" if takes_pixels else "float"
        values = "pixels, 0 to 255, of that size" if takes_pixels else "float values, prepared as in training"
        shape = " x ".join(map(str, image.shape[1:]))
        sections = [
            _HEAD.format(name=self.name, upper=upper, shape=shape, values=values, kind=kind, outputs=output.size),
            f"#ifndef BINARYVIT_{upper}_H\n#define BINARYVIT_{upper}_H",
            resources.files("keras_binaryvit.deploy").joinpath("c_kernels.h").read_text(encoding="utf-8").rstrip(),
            f"#define {upper}_INPUT_SIZE {image.size} /* {shape} */\n"
            f"#define {upper}_OUTPUT_SIZE {output.size}\n"
            f"#define {upper}_SCRATCH_BYTES {scratch_bytes}",
            f"/* Working memory, which the caller keeps; its contents are of no meaning between calls. */\n"
            f"typedef struct {{\n  float reals[{reals}];\n  uint32_t bits[{self.bit_words}];\n}} {self.name}_scratch;",
        ]
        if names:
            listed = ",\n".join("  " + _c_string(name) for name in names)
            sections.append(
                f"static const char *const {self.name}_class_names[{upper}_OUTPUT_SIZE] = {{\n{listed}\n}};"
            )
        sections += [
            *self.declarations,
            f"static inline void {self.name}_run(const {kind} *input, float *output, {self.name}_scratch *scratch) {{\n"
            f"{calls}\n}}",
            f"#endif /* BINARYVIT_{upper}_H */\n",
        ]
        input_bytes = image.size * (1 if takes_pixels else 4)
        return CExport("\n\n".join(sections), constant_bytes, _CODE_BYTES, scratch_bytes, input_bytes)


_WRITERS = {
    "ADD": _Exporter._add,
    "BinaryVitAttention": _Exporter._attention,
    "BinaryVitFeedForward": _Exporter._feed_forward,
    "BinaryVitPatchMerging": _Exporter._patch_merging,
    "BinaryVitPooling": _Exporter._pooling,
    "CONV_2D": _Exporter._convolution,
    "FULLY_CONNECTED": _Exporter._dense,
    "MEAN": _Exporter._mean,
}

_HEAD = """\
/* The model {name}, written by keras_binaryvit: a binary vision transformer in C99.
 *
 *     static {kind} input[{upper}_INPUT_SIZE]; // {shape}: {values}
 *     static {name}_scratch scratch;
 *     float output[{upper}_OUTPUT_SIZE];
 *     {name}_run(input, output, &scratch);
 *
 * Include this file in one other. It needs no library, and nothing is allocated. Float arithmetic must be IEEE 754's:
 * compile without -ffast-math, and with -ffp-contract=off where the compiler is neither GCC nor Clang. */"""


def _place(spaces: Sequence[_Space]) -> None:
    """Gives spaces offsets at which those of the same time don't overlap: the largest first, each as low as it fits."""
    placed: list[_Space] = []
    for space in sorted(spaces, key=lambda space: -space.size):
        while other := next((other for other in placed if _overlap(space, other)), None):
            space.offset = other.offset + other.size
        placed.append(space)


def _overlap(a: _Space, b: _Space) -> bool:
    in_time = a.first <= b.last and b.first <= a.last
    return in_time and a.offset < b.offset + b.size and b.offset < a.offset + a.size


def _literal(kind: str, value: Any) -> str:
    if kind == "uint32_t":
        return f"0x{value:08x}u"
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0')}p{exponent}{'f' * (kind == 'float')}".replace(".p", "p")


def _c_string(name: str) -> str:
    """Returns a literal of UTF-8 bytes; octal escapes end after three digits, whatever follows."""
    plain = [chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in name.encode()]
    return f'"{"".join(plain)}"'
