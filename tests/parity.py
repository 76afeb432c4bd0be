"""Compares BinaryViT with a recording of the authors' implementation. `python tests/parity.py` prints the table."""

import json
import os
from pathlib import Path

import keras
import numpy as np
from keras import ops

import keras_binaryvit as kb

GOLDEN = Path(__file__).parent / "golden"


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

        differentiate = jax.value_and_grad(function, has_aux=True)
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

    def model(self):
        config = self.config["config"]
        widths, hidden = config["hidden_size"], config["intermediate_size"]
        return kb.BinaryViT(
            image_shape=self.images.shape[1:],
            num_classes=self.config["num_labels"],
            patch_size=config["patch_size"],
            embed_dims=widths,
            depths=config["depths"],
            num_heads=config["num_attention_heads"],
            reductions=config["reduction_ratio"],
            expansions=[h // w for h, w in zip(hidden, widths, strict=True)],
            binary_patch_merging=not self.config["flags"]["some_fp"],
        )

    def eval_errors(self, model):
        """The relative error of every recorded value of the inference pass that has a counterpart."""
        computed = {}
        x = model.get_layer("patch_embedding")(self.images, training=False)
        computed["embeddings"] = x
        block_index = 0
        for stage, depth in enumerate(model.stages["depths"]):
            if stage:
                x = computed[f"patch_embed/{stage}"] = model.get_layer(f"patch_merging_{stage}")(x, training=False)
            for _ in range(depth):
                block = model.get_layer(f"block_{block_index}")
                computed |= self._inside(block, x, block_index)
                x = computed[f"layer_out/{block_index}"] = block(x, training=False)
                block_index += 1
        computed["final_norm"] = model.get_layer("norm")(x, training=False)
        computed["logits"] = model(self.images, training=False)
        return {name: relative_error(value, self.arrays[f"eval/{name}"]) for name, value in computed.items()}

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
        parameters = kb.checkpoints.torch_parameters(model)
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
        parameters = kb.checkpoints.torch_parameters(model)
        return {
            name: relative_error(parameters[name].to_torch(ops.convert_to_numpy(parameters[name].variable)), expected)
            for key, expected in self.arrays.items()
            if key.startswith("train/buffers/") and (name := key.removeprefix("train/buffers/")) in parameters
        }


def attention_pool(x, reduction):
    return ops.average_pool(x, reduction, reduction, "valid", data_format="channels_last")


def main():
    recording = Recording("pyramid_mini")
    model = recording.model()
    kb.checkpoints.load_torch_state_dict(model, recording.state)
    rows = {"eval: logits and intermediates": max(recording.eval_errors(model).values())}
    for mode in ("evalgrad", "train"):
        errors = recording.step_errors(
            model, mode, train_step(model, recording.images, recording.labels, training=mode == "train")
        )
        rows[f"{mode}: logits"] = errors["logits"]
        rows[f"{mode}: loss"] = errors["loss"]
        rows[f"{mode}: 395 gradients"] = max(errors["gradients"].values())
    rows["train: 112 running statistics"] = max(recording.buffer_errors(model).values())
    print(f"pyramid_mini, {keras.backend.backend()}: largest error, relative to the array's maximum")
    for name, error in rows.items():
        print(f"  {name:34s} {error:.1e}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
