"""Names for the types of arguments, where Keras has no type hints."""

from collections.abc import Callable
from typing import Any, TypeAlias

# A tensor of any backend, a `keras.KerasTensor`, a variable, or an array.
Tensor: TypeAlias = Any

# A size is an integer, or `None` where it isn't known. `Any`, because most code needs sizes that are known.
Shape: TypeAlias = tuple[Any, ...]

# The logs that Keras passes to callbacks: a dictionary. `Any`, because their default is `None`.
Logs: TypeAlias = Any

# Whatever `quantizers.get` takes.
QuantizerLike: TypeAlias = str | dict | Callable[[Tensor], Tensor] | None
