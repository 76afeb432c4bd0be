"""Binarizers and other quantizers, with Larq's names, maths and string aliases, on every Keras backend.

A quantizer is a small serializable callable with a `precision` in bits. Its value is quantized; its gradient is the
estimate that its docstring states. `get` turns what users write into one of them.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_binaryvit.typing import QuantizerLike, Shape, Tensor

_PACKAGE = "keras_binaryvit"
_ALIASES: dict[str, Callable[[], "Quantizer"]] = {}


def _register(*aliases: str) -> Callable[[type], type]:
    """Makes a quantizer class serializable and known to `get` by its class name and by `aliases`."""

    def register(cls):
        for alias in (cls.__name__, *aliases):
            _ALIASES[alias] = cls
        return keras.saving.register_keras_serializable(_PACKAGE)(cls)

    return register


def _with_gradient(value, gradient, *constants):
    """Returns f with f(x) = `value(x)` whose gradient is `gradient(x, upstream, *constants)`.

    Tensors that the gradient needs are `constants`: JAX's rematerialization loses those of an enclosing function.
    """

    @ops.custom_gradient
    def function(x, *constants):
        def grad(*args, upstream=None):
            to_x = gradient(x, args[0] if upstream is None else upstream, *constants)
            # JAX takes no None for the gradient to a constant.
            return to_x, *(ops.zeros_like(c) if keras.backend.backend() == "jax" else None for c in constants)

        return value(x), grad

    def of_tensor(x):
        x = ops.convert_to_tensor(x)
        # TensorFlow's custom gradients take no variables; a cast reads them.
        return function(ops.cast(x, x.dtype) if hasattr(x, "assign") else x, *constants)

    return of_tensor


def _sign(x):
    # The form that the LCE converter recognizes; +1 at zero, because a bit has two values.
    return ops.cast(ops.where(x >= 0, 1.0, -1.0), x.dtype)


def _clipped(clip_value):
    """The straight-through gradient: the upstream one where |x| <= `clip_value`, else 0."""

    def gradient(x, upstream):
        if clip_value is None:
            return upstream
        return ops.where(ops.abs(x) <= clip_value, upstream, 0.0)

    return gradient


class Quantizer:
    """Base class: a serializable function of a tensor, element by element unless its docstring says otherwise.

    Attributes:
        precision: Bits of an output value, or `None` where the values are real.
    """

    precision: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the quantized `x`, of the same shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def decompose(self, kernel: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns `(values, scale)` with `self(kernel) == values * scale`.

        Binary layers multiply by `values`, which are small integers that float32 sums exactly, and scale the result:
        `scale` is `None` or one factor for each unit, shape `(units,)`.
        """
        return self(kernel), None

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Quantizer":
        """Creates the quantizer from `get_config()`."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


@_register("ste_sign")
class SteSign(Quantizer):
    """Sign with the straight-through gradient.

    q(x) = -1 for x < 0, +1 for x >= 0; dq/dx = 1 for |x| <= `clip_value`, else 0.

    Args:
        clip_value: Where the gradient ends; `None` for nowhere.

    Source: Courbariaux et al., arXiv 1602.02830.
    """

    precision = 1

    def __init__(self, clip_value: float | None = 1.0):
        self.clip_value = clip_value

    def __call__(self, x: Tensor) -> Tensor:
        return _with_gradient(_sign, _clipped(self.clip_value))(x)

    def get_config(self) -> dict:
        return {"clip_value": self.clip_value}


@_register("approx_sign")
class ApproxSign(Quantizer):
    """Sign with a triangular gradient, the activation binarizer of BinaryViT.

    q(x) = -1 for x < 0, +1 for x >= 0; dq/dx = 2 - 2|x| for |x| <= 1, else 0.

    Source: Liu et al. (Bi-Real Net), arXiv 1808.00278, section 3.3.
    """

    precision = 1

    def __call__(self, x: Tensor) -> Tensor:
        def gradient(x, upstream):
            return ops.maximum(1 - ops.abs(x), 0.0) * 2 * upstream

        return _with_gradient(_sign, gradient)(x)


@_register("swish_sign")
class SwishSign(Quantizer):
    """Sign with the gradient of SignSwish.

    q(x) = -1 for x < 0, +1 for x >= 0; dq/dx = b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)), b = `beta`.

    Args:
        beta: Larger values follow the derivative of the sign more closely.

    Source: Darabi et al. (BNN+), arXiv 1812.11800.
    """

    precision = 1

    def __init__(self, beta: float = 5.0):
        self.beta = beta

    def __call__(self, x: Tensor) -> Tensor:
        def gradient(x, upstream):
            bx = self.beta * x
            return upstream * self.beta * (2 - bx * ops.tanh(bx * 0.5)) / (1 + ops.cosh(bx))

        return _with_gradient(_sign, gradient)(x)

    def get_config(self) -> dict:
        return {"beta": self.beta}


@_register("ste_heaviside")
class SteHeaviside(Quantizer):
    """Step to {0, 1} with the straight-through gradient.

    q(x) = 1 for x > 0, 0 for x <= 0; dq/dx = 1 for |x| <= `clip_value`, else 0.

    Args:
        clip_value: Where the gradient ends; `None` for nowhere.
    """

    precision = 1

    def __init__(self, clip_value: float | None = 1.0):
        self.clip_value = clip_value

    def __call__(self, x: Tensor) -> Tensor:
        def step(x):
            return ops.cast(x > 0, x.dtype)

        return _with_gradient(step, _clipped(self.clip_value))(x)

    def get_config(self) -> dict:
        return {"clip_value": self.clip_value}


@_register("ste_tern")
class SteTern(Quantizer):
    """Ternary values {-1, 0, 1} with the straight-through gradient.

    q(x) = 1 for x > t, 0 for |x| < t, -1 for x < -t; dq/dx = 1 for |x| <= `clip_value`, else 0.

    Args:
        threshold_value: t.
        ternary_weight_networks: Use t = 0.7 mean(|x|) over the whole tensor instead.
        clip_value: Where the gradient ends; `None` for nowhere.

    Source: Li et al. (Ternary Weight Networks), arXiv 1605.04711.
    """

    precision = 2

    def __init__(
        self,
        threshold_value: float = 0.05,
        ternary_weight_networks: bool = False,
        clip_value: float | None = 1.0,
    ):
        self.threshold_value = threshold_value
        self.ternary_weight_networks = ternary_weight_networks
        self.clip_value = clip_value

    def __call__(self, x: Tensor) -> Tensor:
        def ternary(x):
            threshold = self.threshold_value
            if self.ternary_weight_networks:
                threshold = 0.7 * ops.mean(ops.abs(x))
            return ops.sign(ops.sign(x + threshold) + ops.sign(x - threshold))

        return _with_gradient(ternary, _clipped(self.clip_value))(x)

    def get_config(self) -> dict:
        return {
            "threshold_value": self.threshold_value,
            "ternary_weight_networks": self.ternary_weight_networks,
            "clip_value": self.clip_value,
        }


@_register("magnitude_aware_sign")
class MagnitudeAwareSign(Quantizer):
    """Sign times the mean magnitude of each unit (last axis), for kernels.

    q(x) = a sign(x), a = mean |x| over all axes but the last; dq/dx = a for |x| <= `clip_value`, else 0
    (a is detached: it counts as a constant).

    Args:
        clip_value: Where the gradient ends; `None` for nowhere.

    Source: Liu et al. (Bi-Real Net), arXiv 1808.00278, section 3.3.
    """

    precision = 1

    def __init__(self, clip_value: float | None = 1.0):
        self.clip_value = clip_value

    def __call__(self, x: Tensor) -> Tensor:
        values, scale = self.decompose(x)
        return values * scale

    def decompose(self, kernel: Tensor) -> tuple[Tensor, Tensor | None]:
        return _with_gradient(_sign, _clipped(self.clip_value))(kernel), _unit_magnitude(kernel)

    def get_config(self) -> dict:
        return {"clip_value": self.clip_value}


def _unit_magnitude(kernel):
    return ops.stop_gradient(ops.mean(ops.abs(kernel), axis=tuple(range(len(kernel.shape) - 1))))


@_register("scaled_sign")
class ScaledSign(Quantizer):
    """The kernel binarizer of BinaryViT: signs times the mean magnitude of each unit (last axis).

    With Wc = W - mean(W) over the inputs of a unit if `centered`, else Wc = W, and a = mean |W| over all axes but the
    last, detached and of the un-centered kernel:

    q(W) = a sign(Wc); the gradient to Wc is the upstream one where |Wc| <= 1, else 0, **not multiplied by a**.
    A centered kernel's gradient then loses its mean over the inputs.

    Args:
        centered: Subtract each unit's mean first. The authors' code does for dense kernels, not for convolutions.

    Source: Le and Li (BinaryViT), arXiv 2306.16678, and the authors' code.
    """

    precision = 1

    # An all-zero unit still has signs that learn: the smallest scale keeps the gradient below free of a division by 0.
    _smallest_scale = 1e-20

    def __init__(self, centered: bool = False):
        self.centered = centered

    def __call__(self, x: Tensor) -> Tensor:
        values, scale = self.decompose(x)
        return values * scale

    def decompose(self, kernel: Tensor) -> tuple[Tensor, Tensor | None]:
        scale = ops.maximum(_unit_magnitude(kernel), self._smallest_scale)

        def center(x):
            return x - ops.mean(x, axis=tuple(range(len(x.shape) - 1)), keepdims=True) if self.centered else x

        def gradient(x, upstream, scale):
            # Whoever multiplies by `scale` multiplies the gradient by it too; the paper's gradient has no such factor.
            return center(ops.where(ops.abs(center(x)) <= 1, upstream / scale, 0.0))

        return _with_gradient(lambda x: _sign(center(x)), gradient, scale)(kernel), scale

    def get_config(self) -> dict:
        return {"centered": self.centered}


_ALIASES["centered_scaled_sign"] = lambda: ScaledSign(centered=True)


@_register("dorefa_quantizer", "DoReFaQuantizer")
class DoReFa(Quantizer):
    """`k_bit` uniform levels, as in DoReFa-Net.

    With n = 2^k_bit - 1: q(x) = round(n clip(x, 0, 1)) / n and dq/dx = 1 for 0 <= x <= 1, else 0. Mode `"weights"`
    maps w to t = tanh(w) / (2 max |tanh(w)|) + 1/2 first and q(t) to 2 q(t) - 1 after (the maximum is detached).

    Args:
        k_bit: Bits of a value.
        mode: `"activations"` or `"weights"`.

    Raises:
        ValueError: `mode` is another string.

    Source: Zhou et al., arXiv 1606.06160, section 2.3.
    """

    precision: int

    def __init__(self, k_bit: int = 2, mode: str = "activations"):
        if mode not in ("activations", "weights"):
            raise ValueError(f"DoReFa has the modes 'activations' and 'weights'. Received: mode={mode!r}")
        self.precision = k_bit
        self.mode = mode

    def __call__(self, x: Tensor) -> Tensor:
        levels = 2**self.precision - 1

        def rounded(x):
            return ops.round(ops.clip(x, 0.0, 1.0) * levels) / levels

        def gradient(x, upstream):
            return ops.where((x >= 0) & (x <= 1), upstream, 0.0)

        if self.mode == "activations":
            return _with_gradient(rounded, gradient)(x)

        limited = ops.tanh(x)
        largest = ops.stop_gradient(ops.max(ops.abs(limited)))
        # An all-zero kernel stays zero and gets no gradient, as in Larq. The clipping above never acts here.
        factor = ops.where(largest > 0, 0.5 / ops.where(largest > 0, largest, ops.ones_like(largest)), 0.0)
        position = limited * factor + 0.5
        return 2.0 * _with_gradient(rounded, lambda x, upstream: upstream)(position) - 1.0

    def get_config(self) -> dict:
        return {"k_bit": self.precision, "mode": self.mode}


@_register("no_op", "NoOpQuantizer")
class NoOp(Quantizer):
    """Changes nothing: q(x) = x. Marks a variable with a `precision` that optimizers and summaries read.

    Args:
        precision: Bits to mark it with.
    """

    def __init__(self, precision: int):
        self.precision = precision

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def get_config(self) -> dict:
        return {"precision": self.precision}


@keras.saving.register_keras_serializable(_PACKAGE)
class ElasticBinarizer(keras.layers.Layer):
    """The attention binarizer of BinaryViT: {0, c} with one learnable c, the clip.

    a(p) = c where p > c/2, else 0 (a tie gives 0). With q = p / c, the gradient to p is the upstream one for
    0 <= q <= 1, else 0; that to c is the sum of upstream * (round(q) - q) for 0 <= q <= 1, of upstream for q > 1.
    A clip that training drives below 1e-5 acts as 1e-5 and can recover.

    Args:
        initial_clip: The clip to start from.

    Shapes: the probabilities, any shape, give the same shape.

    Source: Liu et al. (BiT), arXiv 2205.13016, eq. 5-7, as used by the authors of BinaryViT.
    """

    precision = 1
    smallest_clip = 1e-5

    def __init__(self, initial_clip: float = 0.005, **kwargs: Any):
        if not initial_clip > 0:
            raise ValueError(f"initial_clip must be positive. Received: initial_clip={initial_clip}")
        super().__init__(**kwargs)
        self.initial_clip = initial_clip

    def build(self, input_shape: Shape) -> None:
        self.clip = self.add_weight(
            name="clip", shape=(), initializer=keras.initializers.Constant(self.initial_clip), autocast=False
        )

    def decompose(self, probabilities: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns `(bits, clip)`: `bits`, 0 or 1, in the probabilities' shape and float32, and the scalar `clip`.

        Their product is the layer's output, and its gradients are those stated above.
        """
        # In this order the value is exact: what is added is 0.
        clip = ops.stop_gradient(ops.maximum(self.clip, self.smallest_clip))
        clip = clip + (self.clip - ops.stop_gradient(self.clip))

        @ops.custom_gradient
        def bits(p, c):
            def grad(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                # The gradient of clip(p / c, 0, 1): `clip * bits` then has the gradients of the docstring.
                to_p = ops.where((p >= 0) & (p <= c), upstream / c, 0.0)
                return to_p, -ops.sum(to_p * p) / c

            return ops.cast(p > 0.5 * c, p.dtype), grad

        return bits(ops.cast(probabilities, "float32"), clip), clip

    def call(self, inputs: Tensor) -> Tensor:
        bits, clip = self.decompose(inputs)
        return ops.cast(bits * clip, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "initial_clip": self.initial_clip}


@keras.saving.register_keras_serializable(_PACKAGE)
class LarqQuantizer(Quantizer):
    """A quantizer of Larq itself, used as it is. TensorFlow backend only.

    Args:
        quantizer: An object of `larq.quantizers`, or the name of one such as `"approx_sign"`.

    Raises:
        RuntimeError: Larq can't be imported, or the backend isn't TensorFlow.
        ValueError: Larq has no quantizer of that name.
    """

    def __init__(self, quantizer: str | dict | Callable[[Tensor], Tensor]):
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"Larq's quantizers run on TensorFlow only; the Keras backend is {keras.backend.backend()!r}. "
                "Use the quantizer of the same name from keras_binaryvit.quantizers: it is equal in value and gradient."
            )
        self.quantizer: Any = self._from_larq(quantizer) if isinstance(quantizer, str | dict) else quantizer
        self.precision = getattr(self.quantizer, "precision", None)

    @staticmethod
    def _from_larq(identifier: str | dict) -> Any:
        try:
            larq_quantizers = importlib.import_module("larq.quantizers")
        except Exception as error:  # Larq fails to import in several ways under Keras 3, an AttributeError among them
            legacy = os.environ.get("TF_USE_LEGACY_KERAS")
            raise RuntimeError(
                f"Larq can't be imported ({type(error).__name__}: {error}). It needs `pip install "
                "'keras-binaryvit[larq]'` and the environment variable TF_USE_LEGACY_KERAS=1, set before "
                f"TensorFlow is imported (now: {legacy!r}). keras_binaryvit.quantizers needs neither."
            ) from error
        try:
            return larq_quantizers.get(identifier)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Larq has no quantizer {identifier!r}: {error}") from error

    def __call__(self, x: Tensor) -> Tensor:
        return self.quantizer(x)

    def get_config(self) -> dict:
        config = {"class_name": type(self.quantizer).__name__, "config": self.quantizer.get_config()}
        return {"quantizer": config}


def get(identifier: QuantizerLike) -> Quantizer | Callable[[Tensor], Tensor] | None:
    """Returns the quantizer that `identifier` stands for.

    Args:
        identifier: `None` (gives `None`), a name such as `"ste_sign"` or `"SteSign"` (Larq's names), `"larq.NAME"` for
            Larq's own, an object of this module or of Larq, its serialized form, or any function of a tensor.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(identifier, str):
        if identifier.startswith("larq."):
            return LarqQuantizer(identifier.removeprefix("larq.").removeprefix("quantizers."))
        if identifier not in _ALIASES:
            names = ", ".join(sorted(name for name in _ALIASES if name.islower()))
            raise ValueError(f"Unknown quantizer {identifier!r}. Known names: {names}")
        try:
            return _ALIASES[identifier]()
        except TypeError as error:
            raise ValueError(f"The quantizer {identifier!r} needs arguments; pass an object of it: {error}") from error
    if isinstance(identifier, dict):
        return get(keras.saving.deserialize_keras_object(identifier))
    if identifier is None or isinstance(identifier, Quantizer):
        return identifier
    if type(identifier).__module__.partition(".")[0] == "larq":
        return LarqQuantizer(identifier)
    if callable(identifier):
        return identifier
    raise ValueError(
        "A quantizer is a name, an object of keras_binaryvit.quantizers or of Larq, or a function of a tensor. "
        f"Received: {identifier!r} (of type {type(identifier).__name__})"
    )


def is_one_bit(quantizer: QuantizerLike) -> bool:
    """Returns whether the values of `quantizer` have one bit. `NoOp` only marks a variable: its values are real."""
    return getattr(quantizer, "precision", None) == 1 and not isinstance(quantizer, NoOp)


def serialize(quantizer: QuantizerLike) -> dict | None:
    """Returns the serialized form that `get` reads."""
    return keras.saving.serialize_keras_object(quantizer)
