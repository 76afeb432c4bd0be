"""The layers of a model frozen with `ops="fused"`: each is one operator of binaryvit-runtime.

docs/operators.md defines what they compute, in which order; the names here are its names. Their weights are the tables
of that page, and kernels of +-1, units last. While a model is converted, each writes itself (`composite.py`).
"""

from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_binaryvit.deploy import composite
from keras_binaryvit.deploy.composite import pack
from keras_binaryvit.deploy.graph import Edge
from keras_binaryvit.deploy.lce_layers import InferenceLayer
from keras_binaryvit.typing import Shape, Tensor

_PACKAGE = "keras_binaryvit.fused"


class FusedLayer(InferenceLayer):
    """A layer that becomes one operator.

    Attributes:
        operator: Name of the operator.
        attributes: The operator's options.
        tables: Names of the rows of each table of parameters, by the table's name.
        output_scale: Row that scales the output, `None` where there is none.
        output_shift: Row that shifts the output, `None` where there is none.
    """

    operator: ClassVar[str]
    output_scale: ClassVar[str | None] = None
    output_shift: ClassVar[str | None] = None

    @property
    def attributes(self) -> dict[str, int]:
        return {}

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        return {}

    @staticmethod
    def shift_inputs(constants: dict[str, np.ndarray], shift: np.ndarray | float) -> None:
        """Changes `constants` for inputs that come without `shift`."""
        raise NotImplementedError

    @classmethod
    def put_before(cls, constants: dict[str, np.ndarray], affine: Edge) -> None:
        """Makes `constants` those of a layer whose inputs go through `affine` first."""
        cls.shift_inputs(constants, affine.shift)
        constants["scale"] = constants["scale"] * affine.scale

    @classmethod
    def put_after(cls, constants: dict[str, np.ndarray], affine: Edge) -> None:
        """Makes `constants` those of a layer whose outputs go through `affine`."""
        for row in filter(None, (cls.output_scale, cls.output_shift)):
            constants[row] = constants[row] * affine.scale
        if cls.output_shift:
            constants[cls.output_shift] = constants[cls.output_shift] + affine.shift

    def constants(self, **values: Any) -> dict[str, np.ndarray]:
        """Returns the layer's weights, of the values of kernels and of the rows of the tables."""
        tables = {name: np.stack([values.pop(row) for row in rows]) for name, rows in self.tables.items()}
        return {**values, **tables}

    def operands(self) -> list[np.ndarray]:
        """Returns the constant inputs of the operator: the weights in their order, kernels as bits."""

        def operand(weight):
            value = ops.convert_to_numpy(weight)
            if weight.name == "kernels":
                return np.stack([pack(kernel) for kernel in value])
            return pack(value) if weight.name.startswith("kernel") else value

        return [operand(weight) for weight in self.weights]

    def compute(self, x: Tensor, *others: Tensor) -> Tensor:
        """Returns the layer's output."""
        raise NotImplementedError

    def call(self, inputs: Tensor) -> Tensor:
        tensors = keras.tree.flatten(inputs)
        return self._written(*tensors) if composite.writes() else self.compute(*tensors)

    def _written(self, x, *others):
        import tensorflow as tf

        shapes: Any = [tuple(tensor.shape) for tensor in (x, *others)]
        shape = self.compute_output_shape(shapes if others else shapes[0])
        with tf.init_scope():  # where variables have values
            operands = self.operands()
        return composite.operator(self, self.operator, shape, "float32", x, *operands, *others, **self.attributes)

    def _rows(self, table):
        return dict(zip(self.tables[table], _unstacked(getattr(self, table)), strict=True))


class ResidualLayer(FusedLayer):
    """A layer that can add a residual to its output: its input, unless it takes a second one.

    Args:
        residual: Whether it does, 0 or 1.
    """

    residual: int = 0

    @property
    def attributes(self) -> dict[str, int]:
        return {"residual": self.residual}


def fused_layers(frozen: keras.Model) -> list[FusedLayer]:
    """Returns the layers of a frozen model that become one operator each."""
    return [layer for layer in frozen._flatten_layers() if isinstance(layer, FusedLayer)]


@keras.saving.register_keras_serializable(_PACKAGE)
class FeedForward(ResidualLayer):
    """A `BinaryFeedForward`.

    Args:
        expansion: Hidden units for each channel.
        residual: Whether a second input is added to the output, 0 or 1.

    Shapes: `(..., channels)`, 2 to 4 dimensions, and the same comes out; the residual has it too.
    """

    expansion: int
    operator = "BinaryVitFeedForward"
    output_scale, output_shift = "output_scale", "output_shift"
    tables = {
        "hidden": ("multiplier_1", "bias_1", "slope_1", "threshold_2"),
        "parameters": (
            *("scale", "threshold_1", "multiplier_2", "bias_2", "slope_2"),
            *("output_scale", "output_shift"),
        ),
    }

    def build(self, input_shape: Shape) -> None:
        shape = input_shape[0] if self.residual else input_shape
        channels = shape[-1]
        hidden = channels * self.expansion
        self.kernel_1 = self._constant("kernel_1", (channels, hidden))
        self.hidden = self._constant("hidden", (4, hidden))
        self.kernel_2 = self._constant("kernel_2", (hidden, channels))
        self.parameters = self._constant("parameters", (7, channels))

    def compute(self, x: Tensor, *residual: Tensor) -> Tensor:
        p = {**self._rows("hidden"), **self._rows("parameters")}
        s = x * p["scale"]
        u = _differ(s + p["threshold_1"], self.kernel_1) * p["multiplier_1"] + p["bias_1"]
        u = _prelu(u + _copies(s, self.expansion), p["slope_1"])
        v = _differ(u + p["threshold_2"], self.kernel_2) * p["multiplier_2"] + p["bias_2"]
        v = _prelu(v + self._means(u), p["slope_2"])
        return _sum([v * p["output_scale"] + p["output_shift"], *residual])

    def _means(self, u):
        *leading, hidden = ops.shape(u)
        groups = ops.reshape(u, (*leading, hidden // self.expansion, self.expansion))
        return _sum([groups[..., index] for index in range(self.expansion)]) * np.float32(1 / self.expansion)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[0] if self.residual else input_shape

    @staticmethod
    def shift_inputs(constants: dict[str, np.ndarray], shift: np.ndarray | float) -> None:
        shift = constants["scale"] * shift
        copies = len(constants["bias_1"]) // len(shift)
        constants["threshold_1"] = constants["threshold_1"] + shift
        constants["bias_1"] = constants["bias_1"] + np.tile(shift, copies)


_PARTS = ("threshold", "multiplier", "bias", "slope")


@keras.saving.register_keras_serializable(_PACKAGE)
class SelfAttention(ResidualLayer):
    """A `BinarySelfAttention`.

    Args:
        heads: Groups of channels next to each other.
        reduction: Side of the squares of positions that share a key and a value.
        residual: Whether the input is added to the output, 0 or 1.

    Shapes: `(batch, height, width, channels)`, and the same comes out.
    """

    heads: int
    reduction: int = 1
    operator = "BinaryVitAttention"
    output_scale, output_shift = "output_scale", "output_shift"

    @property
    def attributes(self) -> dict[str, int]:
        return {"heads": self.heads, "reduction": self.reduction, "residual": self.residual}

    @property
    def kernel_names(self) -> tuple[str, ...]:
        """What the kernels are for, in their order."""
        return ("query", "key", "value", "output", *(("reduced",) if self.reduction > 1 else ()))

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        of_kernels = [tuple(f"{name}/{part}" for part in _PARTS) for name in self.kernel_names]
        return {
            "parameters": (
                *("scale", *sum(of_kernels[:4], ())),
                *("query_threshold", "key_threshold", "value_threshold"),
                *("context_scale", "context_bias", "context_slope", "output_scale", "output_shift"),
                *sum(of_kernels[4:], ()),
            )
        }

    def build(self, input_shape: Shape) -> None:
        channels, count = input_shape[-1], len(self.kernel_names)
        self.kernels = self._constant("kernels", (count, channels, channels))
        self.parameters = self._constant("parameters", (9 + 4 * count, channels))
        self.probability_threshold = self._constant("probability_threshold", (1,))

    def compute(self, x: Tensor) -> Tensor:
        p = self._rows("parameters")
        kernels = dict(zip(self.kernel_names, _unstacked(self.kernels), strict=True))

        def project(z, name):
            threshold, multiplier, bias, slope = (p[f"{name}/{part}"] for part in _PARTS)
            return _prelu(_differ(z + threshold, kernels[name]) * multiplier + bias + z, slope)

        s = x * p["scale"]
        g = project(self._square_means(s), "reduced") if self.reduction > 1 else s
        q, k, v = project(s, "query"), project(g, "key"), project(g, "value")
        o = self._attend(*(z + p[f"{name}_threshold"] for z, name in ((q, "query"), (k, "key"), (v, "value"))))
        t = o * p["context_scale"] + p["context_bias"] + q + self._upsample(k + v)
        t = _prelu(t, p["context_slope"])
        output = project(t, "output") * p["output_scale"] + p["output_shift"]
        return output + x if self.residual else output

    def _square_means(self, s):
        r = self.reduction
        _, height, width, channels = s.shape
        squares = ops.reshape(s, (-1, height // r, r, width // r, r, channels))
        rows = [_sum([squares[:, :, i, :, j] for j in range(r)]) for i in range(r)]
        return _sum(rows) * np.float32(1 / r**2)

    def _attend(self, query, key, value):
        """Returns for each query the sum of the signs of the values whose probability is above the threshold."""
        _, height, width, channels = query.shape
        head_dim = channels // self.heads

        def split(x):
            x = ops.reshape(_sign(x), (-1, x.shape[1] * x.shape[2], self.heads, head_dim))
            return ops.transpose(x, (0, 2, 1, 3))

        # JAX has no float64 unless it is told to.
        dtype = "float32" if keras.backend.backend() == "jax" else "float64"
        scores = ops.matmul(split(query), ops.swapaxes(split(key), -1, -2))
        # As the operator does: a table of exponentials, which no processor's own `exp` changes, and no division.
        table = ops.convert_to_tensor(np.exp(-2 * np.arange(head_dim + 1) / head_dim**0.5), dtype)
        exponentials = ops.take(table, ops.cast((head_dim - scores) * 0.5, "int32"))
        least = ops.cast(self.probability_threshold, dtype) * ops.sum(exponentials, axis=-1, keepdims=True)
        bits = ops.cast(exponentials > least, "float32")
        outputs = ops.transpose(ops.matmul(bits, split(value)), (0, 2, 1, 3))
        return ops.reshape(outputs, (-1, height, width, channels))

    def _upsample(self, x):
        if self.reduction == 1:
            return x
        return ops.repeat(ops.repeat(x, self.reduction, axis=1), self.reduction, axis=2)

    @staticmethod
    def shift_inputs(constants: dict[str, np.ndarray], shift: np.ndarray | float) -> None:
        shift = constants["scale"] * shift
        for name in ("query", "reduced") if "reduced/bias" in constants else ("query", "key", "value"):
            for part in ("threshold", "bias"):
                constants[f"{name}/{part}"] = constants[f"{name}/{part}"] + shift


@keras.saving.register_keras_serializable(_PACKAGE)
class PoolingBranches(ResidualLayer):
    """A `MultiBranchAveragePooling`: a cross of weights for each channel, symmetric about its center.

    Args:
        vertical: Reach of the cross above and below.
        horizontal: Reach of the cross to the left and to the right.
        residual: Whether the input is added to the output, 0 or 1.

    Shapes: `(batch, height, width, channels)`, and the same comes out.
    """

    vertical: int
    horizontal: int
    operator = "BinaryVitPooling"
    output_shift = "bias"

    @property
    def attributes(self) -> dict[str, int]:
        return {"vertical": self.vertical, "residual": self.residual}

    @property
    def tables(self) -> dict[str, tuple[str, ...]]:
        below = [f"below_{distance}" for distance in range(1, self.vertical + 1)]
        beside = [f"beside_{distance}" for distance in range(1, self.horizontal + 1)]
        return {"parameters": ("scale", "shift", "bias", "center", *below, *beside)}

    def build(self, input_shape: Shape) -> None:
        _, height, width, channels = input_shape
        self.parameters = self._constant("parameters", (4 + self.vertical + self.horizontal, channels))
        # The operator computes these itself, in float64, which not every backend has.
        self.row_edge = self._constant("row_edge", (height, 1, channels))
        self.column_edge = self._constant("column_edge", (width, channels))

    def constants(self, **values: Any) -> dict[str, np.ndarray]:
        constants = super().constants(**values)
        sides = self.row_edge.shape[0], self.column_edge.shape[0]
        rows, columns = pooling_edges(constants["parameters"].astype(np.float32), self.vertical, *sides)
        return {**constants, "row_edge": rows[:, None], "column_edge": columns}

    def operands(self) -> list[np.ndarray]:
        return super().operands()[:1]

    def compute(self, x: Tensor) -> Tensor:
        p = self._rows("parameters")
        _, height, width, _ = x.shape
        up, left = self.vertical, self.horizontal
        tall = ops.pad(x, ((0, 0), (up, up), (0, 0), (0, 0)))
        wide = ops.pad(x, ((0, 0), (0, 0), (left, left), (0, 0)))
        terms = [x * (p["center"] * p["scale"])]
        for d in range(1, up + 1):
            pair = tall[:, up - d : up - d + height] + tall[:, up + d : up + d + height]
            terms.append(pair * (p[f"below_{d}"] * p["scale"]))
        for d in range(1, left + 1):
            pair = wide[:, :, left - d : left - d + width] + wide[:, :, left + d : left + d + width]
            terms.append(pair * (p[f"beside_{d}"] * p["scale"]))
        terms.append(ops.convert_to_tensor(self.row_edge) + ops.convert_to_tensor(self.column_edge))
        return _sum([*terms, x] if self.residual else terms)

    @staticmethod
    def shift_inputs(constants: dict[str, np.ndarray], shift: np.ndarray | float) -> None:
        constants["shift"] = constants["shift"] + constants["scale"] * shift


def pooling_edges(table: np.ndarray, vertical: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each row and each column of a map adds, `(height, channels)` and `(width, channels)`, in float64, by
    the operator's `table` of parameters."""
    table = table.astype(np.float64)
    _, shift, bias, center = table[:4]
    below, beside = table[4 : 4 + vertical], table[4 + vertical :]
    return bias + shift * (center + _weights_inside(below, height)), shift * _weights_inside(beside, width)


def _weights_inside(weights, side):
    """Returns for each of `side` positions the sum of the weights of its neighbors that lie inside the map."""
    inside = np.zeros((side, weights.shape[1]))
    for distance, weight in enumerate(weights, 1):
        if distance < side:
            inside[distance:] += weight
            inside[:-distance] += weight
    return inside


@keras.saving.register_keras_serializable(_PACKAGE)
class PatchMerging(FusedLayer):
    """A binary `PatchMerging`, up to its position embedding.

    Args:
        units: Channels of the output.

    Shapes: `(batch, height, width, channels)` gives `(batch, height / 2, width / 2, units)`.
    """

    units: int
    operator = "BinaryVitPatchMerging"
    tables = {"parameters": ("scale", "threshold"), "outputs": ("multiplier", "bias", "slope")}

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        self.kernel = self._constant("kernel", (2, 2, channels, self.units))
        self.parameters = self._constant("parameters", (2, channels))
        self.outputs = self._constant("outputs", (3, self.units))

    def compute(self, x: Tensor) -> Tensor:
        p = {**self._rows("parameters"), **self._rows("outputs")}
        s = x * p["scale"]
        dots = ops.conv(_sign(s + p["threshold"]), self.kernel, 2, "valid", data_format="channels_last")
        differ = (4 * x.shape[-1] - dots) * 0.5
        rows = s[:, :, 0::2] + s[:, :, 1::2]
        m = (rows[:, 0::2] + rows[:, 1::2]) * 0.25
        copies = self.units // x.shape[-1]
        return _prelu(differ * p["multiplier"] + p["bias"] + _copies(m, copies), p["slope"])

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, _ = input_shape
        return batch, height // 2, width // 2, self.units

    @staticmethod
    def shift_inputs(constants: dict[str, np.ndarray], shift: np.ndarray | float) -> None:
        shift = constants["scale"] * shift
        constants["threshold"] = constants["threshold"] + shift
        constants["bias"] = constants["bias"] + np.tile(shift, len(constants["bias"]) // len(shift))


def _unstacked(variable):
    return ops.unstack(ops.convert_to_tensor(variable))  # PyTorch unstacks no variables


def _sign(x):
    return ops.where(x < 0, -1.0, 1.0)


def _differ(x, kernel):
    """Returns in how many bits x and each unit of a kernel `(channels, units)` differ: exact, whatever the order."""
    return (x.shape[-1] - ops.matmul(_sign(x), kernel)) * 0.5


def _prelu(x, slope):
    return ops.where(x >= 0, x, slope * x)


def _copies(x, count):
    return ops.concatenate([x] * count, axis=-1) if count > 1 else x


def _sum(terms):
    """Returns the sum of the terms, from left to right."""
    return sum(terms[1:], start=terms[0])


OPERATORS = {layer.operator for layer in (FeedForward, SelfAttention, PoolingBranches, PatchMerging)}
