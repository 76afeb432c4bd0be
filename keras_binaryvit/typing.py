"""Names for the types of arguments, where Keras has no type hints."""

from collections.abc import Callable
from typing import Any, TypeAlias

# A tensor of any backend, a `keras.KerasTensor`, a variable, or an array.
Tensor: TypeAlias = Any

# With the batch. A size is an integer, or None where it isn't known; most code needs one that is.
Shape: TypeAlias = tuple[Any, ...]

# Whatever `quantizers.get` takes.
QuantizerLike: TypeAlias = str | dict | Callable[[Tensor], Tensor] | None
