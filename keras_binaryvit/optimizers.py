"""Optimizers for networks with binary kernels: Larq's `Bop` and `CaseOptimizer`, and AdamW as the paper uses it."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_binaryvit.typing import Tensor

_Schedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("keras_binaryvit")
class Bop(keras.optimizers.Optimizer):
    """Larq's Bop: it flips binary weights, and there are no latent ones.

    With g the gradient, m its exponential moving average (0 at first) and w a weight of +-1,

        m <- m + gamma (g - m);   w <- -w where w m > threshold, else w

    so that a weight flips when the gradient has long pointed against it. A weight that isn't +-1 becomes its sign in
    the first step. There is no learning rate.

    The layers' `kernel_quantizer` should be `"ste_sign"`: it passes the gradients of weights of +-1 on, and layers with
    it convert. The paper's `"centered_scaled_sign"` doesn't fit: weights away from their unit's mean get no gradient.
    Real-valued weights need an optimizer of their own, beside this one in a `CaseOptimizer`:

    ```python
    optimizer = CaseOptimizer((Bop.is_binary_variable, Bop()), default_optimizer=keras.optimizers.Adam())
    ```

    Args:
        threshold: Of the averaged gradient; a number, which `optimizer.threshold.assign` changes, or a schedule of
            `keras.optimizers.schedules`.
        gamma: Share of the newest gradient in the average; a number or a schedule.
        name: Name of the optimizer.
        **kwargs: `clipnorm`, `clipvalue`, `global_clipnorm`, `loss_scale_factor` and `gradient_accumulation_steps`, as
            in `keras.optimizers.Optimizer`.

    Raises:
        ValueError: The threshold is negative, gamma isn't between 0 and 1, or another argument is given.

    Source: Helwegen et al., arXiv 1906.02107, algorithm 1.
    """

    _BASE_ARGUMENTS = ("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor", "gradient_accumulation_steps")

    def __init__(
        self,
        threshold: float | keras.optimizers.schedules.LearningRateSchedule = 1e-8,
        gamma: float | keras.optimizers.schedules.LearningRateSchedule = 1e-4,
        name: str = "bop",
        **kwargs: Any,
    ):
        unknown = sorted(set(kwargs) - set(self._BASE_ARGUMENTS))
        if unknown:
            raise ValueError(f"Bop takes threshold, gamma, name and {self._BASE_ARGUMENTS}. Received: {unknown}")
        if not isinstance(threshold, _Schedule) and not threshold >= 0:
            raise ValueError(f"The threshold must not be negative. Received: threshold={threshold}")
        if not isinstance(gamma, _Schedule) and not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be between 0 and 1. Received: gamma={gamma}")
        super().__init__(learning_rate=0.0, name=name, **kwargs)
        self.threshold = self._hyperparameter("threshold", threshold)
        self.gamma = self._hyperparameter("gamma", gamma)

    def _hyperparameter(self, name, value):
        if isinstance(value, _Schedule):
            return value
        return self.add_variable((), keras.initializers.Constant(value), name=name)

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the average of each variable's gradient."""
        if self.built:
            return
        super().build(variables)
        self._averages = self.add_optimizer_variables(variables, "average")

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one variable; the learning rate plays no part."""

        def current(hyperparameter):
            value = hyperparameter(self.iterations) if isinstance(hyperparameter, _Schedule) else hyperparameter
            return ops.cast(value, variable.dtype)

        average = self._averages[self._get_variable_index(variable)]
        difference = ops.cast(gradient, variable.dtype) - average
        self.assign_add(average, current(self.gamma) * difference)
        weights = ops.convert_to_tensor(variable)  # JAX doesn't take variables everywhere
        excess = weights * average - current(self.threshold)
        updated = ops.where(excess > 0, -weights, ops.where(excess < 0, weights, excess))
        # +1 at 0, as in Larq; NaN stays NaN, on PyTorch too, where its sign is 0.
        signs = ops.where(updated >= 0, ops.ones_like(updated), -ops.ones_like(updated))
        self.assign(variable, ops.where(ops.isnan(updated), updated, signs))

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""

        def serialized(value):
            if isinstance(value, _Schedule):
                return keras.optimizers.schedules.serialize(value)
            return float(ops.convert_to_numpy(value))

        return {
            "threshold": serialized(self.threshold),
            "gamma": serialized(self.gamma),
            "name": self.name,
            **{argument: getattr(self, argument) for argument in self._BASE_ARGUMENTS},
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Bop":
        """Creates the optimizer from `get_config()`."""
        config = dict(config)
        for name in ("threshold", "gamma"):
            if isinstance(config.get(name), dict):
                config[name] = keras.optimizers.schedules.deserialize(config[name], custom_objects)
        return cls(**config)

    @staticmethod
    def is_binary_variable(variable: keras.Variable) -> bool:
        """Returns whether `variable` is the kernel of a layer whose `kernel_quantizer` has a precision of 1."""
        return getattr(variable, "precision", None) == 1


@keras.saving.register_keras_serializable("keras_binaryvit")
class CaseOptimizer(keras.optimizers.Optimizer):
    """Larq's CaseOptimizer: each variable is trained by the optimizer whose predicate claims it.

    A saved optimizer keeps which variable belongs to which optimizer, not the predicates.

    Args:
        *predicate_optimizer_pairs: `(predicate, optimizer)`: the predicate takes a variable, and returns whether the
            optimizer trains it.
        default_optimizer: Trains what no predicate claims; without one such variables aren't trained, with a warning.
            `learning_rate` is this one's, for callbacks that show or change it.
        name: Name of the optimizer.

    Raises:
        TypeError: A predicate can't be called, or an optimizer isn't one of Keras 3.
        ValueError: Once the variables are known: two predicates claim the same one, or one claims none.
    """

    def __init__(
        self,
        *predicate_optimizer_pairs: tuple[Callable[[keras.Variable], bool], keras.optimizers.Optimizer],
        default_optimizer: keras.optimizers.Optimizer | None = None,
        name: str = "optimizer_case",
    ):
        super().__init__(learning_rate=0.0, name=name)
        predicates, optimizers = [], []
        for index, (predicate, optimizer) in enumerate(predicate_optimizer_pairs):
            if not callable(predicate):
                raise TypeError(f"The predicate of pair {index} must be a function of a variable, not {predicate!r}.")
            predicates.append(predicate)
            optimizers.append(optimizer)
        if default_optimizer is not None:
            optimizers.append(default_optimizer)
        for optimizer in optimizers:
            if not isinstance(optimizer, keras.optimizers.Optimizer):
                raise TypeError(f"An optimizer must be a keras.optimizers.Optimizer (of Keras 3), not {optimizer!r}.")
            if optimizer.loss_scale_factor is not None or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                raise ValueError(
                    "The loss is one for all variables: scale it with a keras.optimizers.LossScaleOptimizer around the "
                    f"CaseOptimizer. Received: the optimizer {optimizer.name!r}, which scales it for its own share."
                )
        self.predicates = predicates
        self.optimizers = optimizers
        self.default = default_optimizer
        # For each variable, in the order of `build`, the index of its optimizer or None.
        self.assignment: list[int | None] | None = None

    def build(self, variables: list[keras.Variable]) -> None:
        """Assigns the variables to the optimizers and builds these."""
        if self.built:
            return
        super().build(variables)
        if self.assignment is None:
            self.assignment = [self._claim(variable) for variable in variables]
            for index, optimizer in enumerate(self.optimizers[: len(self.predicates)]):
                if index not in self.assignment:
                    raise ValueError(f"The predicate of optimizer {optimizer.name!r} claims no variable.")
            untrained = [v.path for v, index in zip(variables, self.assignment, strict=True) if index is None]
            if untrained:
                warnings.warn(f"No optimizer trains these variables: {', '.join(untrained)}", stacklevel=2)
        elif len(self.assignment) != len(variables):
            raise ValueError(
                f"This optimizer was saved with {len(self.assignment)} variables, and the model has {len(variables)}: "
                "make a new CaseOptimizer for it."
            )
        for index, optimizer in enumerate(self.optimizers):
            optimizer.build(self._share(index, variables))

    def _claim(self, variable):
        claims = [index for index, predicate in enumerate(self.predicates) if predicate(variable)]
        if len(claims) > 1:
            names = " and ".join(repr(self.optimizers[index].name) for index in claims)
            raise ValueError(f"The predicates of optimizers {names} both claim the variable {variable.path!r}.")
        default = None if self.default is None else len(self.predicates)
        return claims[0] if claims else default

    def _share(self, index, variables):
        assignment = self.assignment or []  # empty only where there are no variables
        return [v for v in variables if assignment[self._get_variable_index(v)] == index]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of this optimizer and of all those in it."""
        return [*super().variables, *(v for optimizer in self.optimizers for v in optimizer.variables)]

    def apply(self, grads: list[Tensor], trainable_variables: list[keras.Variable] | None = None) -> None:
        """Passes each gradient on to the optimizer of its variable."""
        if trainable_variables is None:
            variables = self._trainable_variables
        else:
            variables = list(trainable_variables)
            if not self.built:
                self.build(variables)
        self._check_variables_are_known(variables)
        gradients = {id(variable): gradient for variable, gradient in zip(variables, grads, strict=True)}
        for index, optimizer in enumerate(self.optimizers):
            share = self._share(index, variables)
            if share:
                optimizer.apply([gradients[id(variable)] for variable in share], share)
        self._iterations.assign_add(1)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Passes on the end of training, when an optimizer with a moving average sets its variables to it."""
        for index, optimizer in enumerate(self.optimizers):
            optimizer.finalize_variable_values(self._share(index, var_list))

    @property
    def learning_rate(self) -> Any:
        """The default optimizer's."""
        return self._of_learning_rate.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self._of_learning_rate.learning_rate = learning_rate

    @property
    def _of_learning_rate(self) -> keras.optimizers.Optimizer:
        if self.default is None:
            raise AttributeError("This CaseOptimizer has no default optimizer, whose learning rate it could show.")
        return self.default

    def save_own_variables(self, store: Any) -> None:
        """Saves the number of steps; the optimizers save themselves."""
        store["0"] = ops.convert_to_numpy(self._iterations)

    def load_own_variables(self, store: Any) -> None:
        """Loads the number of steps."""
        self._iterations.assign(store["0"])

    def get_config(self) -> dict:
        """Returns the optimizers and, once they are known, their shares of the variables."""
        return {
            "optimizers": [keras.optimizers.serialize(optimizer) for optimizer in self.optimizers],
            "has_default": self.default is not None,
            "assignment": self.assignment and list(self.assignment),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "CaseOptimizer":
        """Creates the optimizer from `get_config()`."""
        optimizers = [keras.optimizers.deserialize(entry, custom_objects) for entry in config["optimizers"]]
        default = optimizers.pop() if config["has_default"] else None

        def predicate(variable):
            raise ValueError(
                "This CaseOptimizer was saved before it knew its variables, and predicates aren't saved: make a new "
                "one, or save it after optimizer.build(model.trainable_variables)."
            )

        pairs = [(predicate, optimizer) for optimizer in optimizers]
        case_optimizer = cls(*pairs, default_optimizer=default, name=config["name"])
        case_optimizer.assignment = config["assignment"]
        return case_optimizer


@keras.saving.register_keras_serializable("keras_binaryvit")
class AdamW(keras.optimizers.Optimizer):
    """AdamW with the paper's constants, PyTorch's defaults, whose decay reaches kernels only.

    A step first multiplies a decayed weight by 1 - `learning_rate` * `weight_decay`. Kernels of dense layers and of
    convolutions decay, binary or not. Shifts, slopes, affines, norms, biases, clips, tokens and position embeddings
    don't, and a saved optimizer still knows so.

    Binary networks have hundreds of variables with one value per channel. All variables of at most `small_size`
    elements are updated together, as one vector: it starts to train in a fraction of the time that an update per
    variable takes to trace and compile, with the same values.

    Args:
        learning_rate: A number or a schedule of `keras.optimizers.schedules`.
        weight_decay: 0 in the paper's recipe.
        beta_1: Share that a step keeps of the gradient's average.
        beta_2: Share that a step keeps of the squared gradient's average.
        epsilon: Added to the root of the latter. Keras' other optimizers have 1e-7.
        name: Name of the optimizer.
        **kwargs: The other arguments of `keras.optimizers.Optimizer`; `global_clipnorm` is PyTorch's
            `clip_grad_norm_`.

    Raises:
        ValueError: `weight_decay` is negative.

    Source: Loshchilov and Hutter, arXiv 1711.05101; BinaryViT's code.
    """

    small_size = 2**14

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        weight_decay: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "adam_w",
        **kwargs: Any,
    ):
        if not weight_decay >= 0:
            raise ValueError(f"The weight decay must not be negative. Received: weight_decay={weight_decay}")
        # None rather than 0, which would multiply every weight by 1.
        super().__init__(learning_rate, weight_decay=weight_decay or None, name=name, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        # A pattern, because a list of variables isn't saved: every name that doesn't end in "kernel".
        self.exclude_from_weight_decay(var_names=[r"^(?!.*kernel(:\d+)?$)"])

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the averages: two per large variable, and two for all small ones together."""
        if self.built:
            return
        super().build(variables)
        large = [variable for variable in variables if not self._is_small(variable)]
        self._momentums, self._velocities = self.add_optimizer_variables(large, ["momentum", "velocity"])
        self._index_of_large = {self._var_key(variable): index for index, variable in enumerate(large)}
        size = sum(_size(variable) for variable in self._small_variables)
        self._small_momentum = self.add_variable((size,), name="small_momentum")
        self._small_velocity = self.add_variable((size,), name="small_velocity")

    def _is_small(self, variable):
        return _size(variable) <= self.small_size and keras.backend.standardize_dtype(variable.dtype) == "float32"

    @property
    def _small_variables(self):
        return [variable for variable in self._trainable_variables if self._is_small(variable)]

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        step = ops.cast(self.iterations + 1, "float32")
        step_size = learning_rate * ops.sqrt(1 - ops.power(self.beta_2, step)) / (1 - ops.power(self.beta_1, step))
        updates, small = [], {}
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            if self._is_small(variable):
                small[self._var_key(variable)] = ops.cast(_reshaped(gradient, (_size(variable),)), "float32")
            else:
                updates.append((gradient, variable))
        present = [self._var_key(variable) in small for variable in self._small_variables]
        if small:
            flat = [small.get(self._var_key(v), np.zeros(_size(v), "float32")) for v in self._small_variables]
            # Its momentum stands for them, so that the backend updates all of them at once, on each of its devices.
            updates.append((ops.concatenate(flat), self._small_momentum))
        super()._backend_update_step(*zip(*updates, strict=True), (step_size, present))

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one large variable, or all small ones.

        Args:
            gradient: Of the variable; of all small ones as one vector.
            variable: A large variable; or the momentum of the small ones, in their place.
            learning_rate: The learning rate with Adam's bias correction, and which small variables have a gradient.
        """
        step_size, present = learning_rate
        if self._var_key(variable) != self._var_key(self._small_momentum):
            index = self._index_of_large[self._var_key(variable)]
            self.assign_sub(
                variable, self._difference(gradient, self._momentums[index], self._velocities[index], step_size)
            )
            return
        sizes = [_size(member) for member in self._small_variables]
        moves = None if all(present) else np.repeat(present, sizes)
        difference = self._difference(gradient, self._small_momentum, self._small_velocity, step_size, moves)
        *parts, _ = ops.split(difference, np.cumsum(sizes).tolist())  # nothing is left for the last part
        for member, part, here in zip(self._small_variables, parts, present, strict=True):
            if here:
                self.assign_sub(member, _reshaped(part, member.shape))

    def _difference(self, gradient, momentum, velocity, step_size, moves=None):
        """Moves the averages, those where `moves` is False excepted, and returns what to subtract from the weights."""
        gradient, step_size = ops.cast(gradient, momentum.dtype), ops.cast(step_size, momentum.dtype)
        to_momentum = (gradient - momentum) * (1 - self.beta_1)
        to_velocity = (ops.square(gradient) - velocity) * (1 - self.beta_2)
        if moves is not None:
            to_momentum, to_velocity = ops.where(moves, to_momentum, 0.0), ops.where(moves, to_velocity, 0.0)
        self.assign_add(momentum, to_momentum)
        self.assign_add(velocity, to_velocity)
        return momentum * step_size / (ops.sqrt(velocity) + self.epsilon)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "weight_decay": self.weight_decay or 0.0,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


def _reshaped(x, shape):
    # Most variables have one value for each channel and the shape already.
    return x if tuple(x.shape) == tuple(shape) else ops.reshape(x, shape)


def _size(variable):
    return math.prod(variable.shape)
