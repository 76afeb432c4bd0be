"""Compares the models with recordings of the authors' implementation. `python tests/parity.py` prints the table."""

import json
import os
from functools import partial
from pathlib import Path

import keras
import numpy as np
from gradients import compiled
from keras import ops

import keras_binaryvit as kb

GOLDEN = Path(__file__).parent / "golden"
RECORDINGS = ("pyramid_mini", "flat_row1_cls", "flat_row4_branch_ls", "deit_fp")

# Layers and the names that their outputs are recorded under; with a number, as in block_0, in the second.
_LAYERS = {"patch_embedding": "embeddings", "norm": "final_norm", "head": "logits"}
_NUMBERED_LAYERS = {"block": "layer_out", "patch_merging": "patch_embed"}


def relative_error(actual, expected) -> float:
    """The largest difference, relative to the largest expected magnitude."""
    actual, expected = ops.convert_to_numpy(actual), np.asarray(expected)
    return float(np.abs(actual.reshape(expected.shape) - expected).max() / np.abs(expected).max())


def train_step(model, images, labels, training):
    """Returns logits, mean cross-entropy and the gradient of each trainable variable, and updates BN statistics."""
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = model.trainable_variables
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            logits = model(images, training=training)
            loss = loss_function(labels, logits)
        gradients = tape.gradient(loss, [v.value for v in variables])
    elif backend == "jax":
        import jax

        def function(trainable, others):
            logits, others = model.stateless_call(trainable, others, images, training=training)
            return loss_function(labels, logits), (logits, others)

        differentiate = compiled(jax.value_and_grad(function, has_aux=True))
        values = [v.value for v in variables], [v.value for v in model.non_trainable_variables]
        (loss, (logits, others)), gradients = differentiate(*values)
        for variable, value in zip(model.non_trainable_variables, others, strict=True):
            variable.assign(value)
    else:
        logits = model(images, training=training)
        loss = loss_function(labels, logits)
        model.zero_grad()
        loss.backward()
        gradients = [v.value.grad for v in variables]
    gradients = {id(v): ops.convert_to_numpy(g) for v, g in zip(variables, gradients, strict=True)}
    return ops.convert_to_numpy(logits), float(ops.convert_to_numpy(loss)), gradients


class Recording:
    """One recording: the authors' weights, an input, and all that their code computes from it."""

    def __init__(self, name):
        self.arrays = dict(np.load(GOLDEN / f"{name}.npz"))
        self.config = json.loads((GOLDEN / f"{name}.json").read_text())
        self.state = {k.removeprefix("state/"): v for k, v in self.arrays.items() if k.startswith("state/")}
        self.images = self.arrays["input"].transpose(0, 2, 3, 1)
        self.labels = self.arrays["labels"]

    def model(self, state=None):
        """Returns the model for the recorded weights, or for those in `state`, with them."""
        state = self.state if state is None else state
        model = kb.torch_checkpoints.create_model(state, config=self.config["config"])
        kb.torch_checkpoints.load_torch_state_dict(model, state)
        return model

    def eval_errors(self, model):
        """The relative error of every recorded value of the inference pass that has a counterpart."""
        tensors, blocks = {}, {}
        for layer in model.layers:
            kind, _, number = layer.name.rpartition("_")
            if layer.name in _LAYERS:
                tensors[_LAYERS[layer.name]] = layer.output
            elif kind in _NUMBERED_LAYERS and number.isdigit():
                tensors[f"{_NUMBERED_LAYERS[kind]}/{number}"] = layer.output
            if isinstance(layer, kb.layers.BinaryTransformerBlock):
                tensors[f"input/{number}"] = layer.input
                blocks[number] = layer
        computed = compiled(partial(keras.Model(model.input, tensors), training=False))(self.images)
        for number, block in blocks.items():
            computed |= compiled(partial(self._inside, block, index=number))(computed.pop(f"input/{number}"))
        recorded = {name: f"eval/{name}" for name in computed if f"eval/{name}" in self.arrays}
        return {name: relative_error(computed[name], self.arrays[key]) for name, key in recorded.items()}

    @staticmethod
    def _inside(block, x, index):
        attention, inner = block.attention, f"inner/{index}"
        h = block.attention_norm(x, training=False)
        context, bits = attention.context(h, training=False)
        output = block.attention_affine(attention.output_projection(context, training=False))
        h2 = block.feed_forward_norm(x + output, training=False)
        hidden = block.feed_forward.expand(h2, training=False)
        keys = (
            attention.reduced(attention_pool(h, attention.reduction), training=False) if attention.reduction > 1 else h
        )
        probabilities = attention.probabilities(attention.query(h, training=False), attention.key(keys, training=False))
        return {
            f"{inner}/layernorm_before": h,
            f"{inner}/attn_core": context,
            f"{inner}/attn_output": output,
            f"{inner}/layernorm_after": h2,
            f"{inner}/intermediate": hidden,
            f"{inner}/ffn_output": block.feed_forward_affine(block.feed_forward.reduce(hidden, training=False)),
            f"attn/{index}": bits,
            f"attn_softmax/{index}": probabilities,
        }

    def step_errors(self, model, mode, step):
        """The relative errors of logits, loss and all gradients of one step, `mode` being `train` or `evalgrad`."""
        logits, loss, gradients = step
        parameters = kb.torch_checkpoints.torch_parameters(model)
        zero = set(self.config["structurally_zero_gradients"][mode])
        errors, zero_error = {}, 0.0
        for key, expected in self.arrays.items():
            if key.startswith(f"{mode}/grad/"):
                name = key.removeprefix(f"{mode}/grad/")
                actual = parameters[name].to_torch(gradients[id(parameters[name].variable)])
                if name in zero:  # only float32 noise is left of them
                    errors[name] = 0.0
                    zero_error = max(zero_error, float(np.abs(actual - expected).max()))
                else:
                    errors[name] = relative_error(actual, expected)
        recorded_logits = self.arrays["train/logits" if mode == "train" else "eval/logits"]
        return {
            "logits": relative_error(logits, recorded_logits),
            "loss": relative_error(np.array(loss), self.arrays[f"{mode}/loss"]),
            "gradients": errors,
            "zero_gradients": zero_error,
        }

    def buffer_errors(self, model):
        """The relative errors of the running statistics after one training step."""
        parameters = kb.torch_checkpoints.torch_parameters(model)
        return {
            name: relative_error(parameters[name].to_torch(ops.convert_to_numpy(parameters[name].variable)), expected)
            for key, expected in self.arrays.items()
            if key.startswith("train/buffers/") and (name := key.removeprefix("train/buffers/")) in parameters
        }


def attention_pool(x, reduction):
    return ops.average_pool(x, reduction, reduction, "valid", data_format="channels_last")


def rows(recording):
    """Yields `(what, largest error)` of all that is recorded."""
    model = recording.model()
    yield "eval: logits and intermediates", max(recording.eval_errors(model).values())
    for mode in ("evalgrad", "train"):  # the second updates the running statistics
        if f"{mode}/loss" in recording.arrays:
            step = train_step(model, recording.images, recording.labels, training=mode == "train")
            errors = recording.step_errors(model, mode, step)
            yield f"{mode}: logits", errors["logits"]
            yield f"{mode}: loss", errors["loss"]
            yield f"{mode}: {len(errors['gradients'])} gradients", max(errors["gradients"].values())
    if statistics := recording.buffer_errors(model):
        yield f"train: {len(statistics)} running statistics", max(statistics.values())


def main():
    for name in RECORDINGS:
        print(f"{name}, {keras.backend.backend()}: largest error, relative to the array's maximum")
        for what, error in rows(Recording(name)):
            print(f"  {what:34s} {error:.1e}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
