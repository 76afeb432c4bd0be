"""profile.summary against counts by hand, against Larq's own summary, and what it says of what it can't count."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from larq_recording import run_python
from requirements import needs_larq

import keras_binaryvit as kb


def silent(text):
    pass


def profile(model, **arguments):
    return kb.profile.summary(model, print_fn=silent, **arguments)


def by_name(model, **arguments):
    return {layer.name: layer for layer in profile(model, **arguments).layers}


TINY = {
    "image_shape": (16, 16, 3),
    "num_classes": 5,
    "embed_dims": (8, 16),
    "depths": (1, 1),
    "num_heads": (1, 2),
    "sr_ratios": (2, 1),
    "mlp_ratios": (4, 2),
}


@pytest.mark.once
def test_binaryvit_small_by_hand():
    # From the paper's table of stages: side of the map, channels, blocks, reduction, expansion.
    stages = [(56, 64, 3, 8, 8), (28, 128, 4, 4, 8), (14, 256, 8, 1, 4), (7, 512, 4, 1, 4)]
    kernels = binary = 0
    for side, channels, blocks, reduction, expansion in stages:
        queries, keys = side * side, (side // reduction) ** 2
        square = channels * channels
        # Query and output at each position; key, value and, where there is one, the reduction at the reduced ones.
        projections = (2 * queries + (3 if reduction > 1 else 2) * keys) * square
        feed_forward = 2 * queries * square * expansion
        attention = 2 * queries * keys * channels  # q . k and a . v: each head has its share of the channels
        binary += blocks * (projections + feed_forward + attention)
        kernels += blocks * ((5 if reduction > 1 else 4) + 2 * expansion) * square
    for side, before, after in ((28, 64, 128), (14, 128, 256), (7, 256, 512)):  # patch merging: 2x2 convolutions
        binary += side * side * 4 * before * after
        kernels += 4 * before * after
    real = 56 * 56 * (4 * 4 * 3) * 64 + 512 * 1000  # patch embedding and head

    result = profile(kb.BinaryViT.from_preset("binaryvit_small"))
    assert result.macs == {1: binary, 32: real} == {1: 3_822_206_976, 32: 10_145_792}
    assert result.parameters[1] == kernels == 21_196_800
    assert result.trainable_parameters == 22_491_771
    assert result.ops == binary / 64 + real
    # The running statistics of the batch normalizations take the place of gamma and beta: two of four vectors.
    assert result.memory == kernels / 8 + 4 * (22_491_771 - kernels)
    assert result.float32_memory == 4 * 22_491_771
    assert not result.uncounted


@pytest.mark.parametrize(
    "quantizer, binary_probabilities, share_of_products",
    [
        ("approx_sign", True, {1: 2}),
        ("approx_sign", False, {1: 1, 32: 1}),
        (None, True, {32: 2}),
        (None, False, {32: 2}),
    ],
)
def test_products_of_attention(quantizer, binary_probabilities, share_of_products):
    layer = kb.layers.BinarySelfAttention(2, 2, quantizer, quantizer, binary_probabilities=binary_probabilities)
    attention = by_name(keras.Sequential([keras.Input((4, 8, 4)), layer]))[layer.name]
    product = 32 * 8 * 4  # queries, keys, channels
    assert attention.macs == {bits: share * product for bits, share in share_of_products.items()}


def test_precisions_are_those_of_the_file():
    """Larq counts what the quantizers say; a product that isn't binary is one of float32 in the file."""

    def dense(input_quantizer, kernel_quantizer):
        quantizers = {"input_quantizer": input_quantizer, "kernel_quantizer": kernel_quantizer}
        return profile(keras.Sequential([keras.Input((3,)), kb.layers.QuantDense(4, use_bias=False, **quantizers)]))

    for inputs, kernel, macs, parameters in [
        ("ste_sign", "ste_sign", 1, 1),
        (None, "ste_sign", 32, 32),
        ("ste_sign", None, 32, 32),
        ("ste_tern", "ste_sign", 32, 32),
        (kb.quantizers.DoReFa(4), "ste_sign", 32, 32),
    ]:
        result = dense(inputs, kernel)
        assert (result.macs, result.parameters) == ({macs: 12}, {parameters: 12})
        assert result.memory == 12 * parameters / 8
        assert result.ops == (12 / 64 if macs == 1 else 12)


def test_the_float_twin_has_no_binary_products():
    none = dict.fromkeys(["input_quantizer", "kernel_quantizer", "conv_kernel_quantizer"])
    binary, real = profile(kb.BinaryViT(**TINY)), profile(kb.BinaryViT(**TINY, **none, binary_probabilities=False))
    assert real.macs == {32: sum(binary.macs.values())}
    assert set(real.parameters) == {32} and real.compression_ratio == 1


def test_frozen_model():
    model = kb.BinaryViT(**TINY)
    before, after = profile(model), profile(kb.deploy.freeze(model))
    assert after.macs[1] == before.macs[1]
    assert after.parameters[1] == before.parameters[1]
    # Each block's pooling branches have become one 5x5 convolution of each channel.
    assert after.macs[32] == before.macs[32] + 25 * (4 * 4 * 8 + 2 * 2 * 16)
    assert not after.uncounted


def test_deit_by_hand():
    depth, channels, tokens, expansion = 2, 192, 197, 4
    dense = (4 + 2 * expansion) * tokens * channels**2
    attention = 2 * tokens**2 * channels
    expected = 196 * 16 * 16 * 3 * channels + depth * (dense + attention) + channels * 1000
    result = profile(kb.DeiT.from_preset("deit_tiny", depth=depth))
    assert result.macs == {32: expected} and not result.uncounted


def test_ordinary_layers_by_hand():
    inputs = keras.Input((9, 7, 6))
    x = keras.layers.Conv2D(8, (3, 2), strides=2, groups=2, padding="same", name="conv")(inputs)  # (5, 4, 8)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)  # (3, 2, 16)
    x = keras.layers.SeparableConv2D(5, 2, padding="same", name="separable")(x)  # (3, 2, 5)
    x = keras.layers.Conv2DTranspose(4, 3, strides=2, name="transpose")(x)
    x = keras.layers.GlobalMaxPooling2D()(x)
    inner = keras.Sequential([keras.layers.Dense(6, name="dense"), keras.layers.ReLU()], name="inner")
    shared = keras.layers.EinsumDense("...a,ab->...b", 6, name="shared")
    model = keras.Model(inputs, shared(shared(inner(x))))
    layers = by_name(model)
    expected = {
        "conv": 5 * 4 * 8 * (3 * 2 * 3),
        "depthwise": 3 * 2 * 16 * 9,
        "separable": 3 * 2 * (2 * 2 * 16 + 16 * 5),
        "transpose": 3 * 2 * 5 * 9 * 4,
        "inner/dense": 4 * 6,
        "shared": 2 * 6 * 6,  # called twice
    }
    assert {name: layer.macs[32] for name, layer in layers.items() if layer.macs} == expected
    assert layers["conv"].output_shape == ((5, 4, 8),) and layers["inner"].output_shape == ((6,),)
    assert sum(sum(layer.parameters.values()) for layer in layers.values()) == model.count_params()


LARQS_SUMMARY = """
import json, larq, tensorflow as tf
from larq.models import ModelProfile

signs = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}
profile = ModelProfile(tf.keras.Sequential([
    tf.keras.Input((12, 10, 3)),
    larq.layers.QuantConv2D(8, 3, use_bias=False),
    tf.keras.layers.BatchNormalization(),
    larq.layers.QuantConv2D(16, 3, strides=2, padding="same", pad_values=1.0, **signs),
    tf.keras.layers.MaxPooling2D(),
    tf.keras.layers.Flatten(),
    larq.layers.QuantDense(10, input_quantizer="ste_sign", kernel_quantizer="ste_sign"),
    tf.keras.layers.Dense(4),
]))
print(json.dumps({
    "macs": {bits: profile.op_count("mac", bits) for bits in profile.unique_op_precisions},
    "parameters": {bits: profile.weight_count(bits) for bits in profile.unique_param_bidtwidths},
    "memory": profile.memory,
    "float32_memory": profile.fp_equivalent_memory,
}))
"""


@needs_larq
def test_larqs_own_summary():
    expected = json.loads(run_python("-c", LARQS_SUMMARY).splitlines()[-1])
    quantizers = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}
    result = profile(
        keras.Sequential(
            [
                keras.Input((12, 10, 3)),
                kb.layers.QuantConv2D(8, 3, use_bias=False),
                keras.layers.BatchNormalization(),
                kb.layers.QuantConv2D(16, 3, strides=2, padding="same", pad_values=1.0, **quantizers),
                keras.layers.MaxPooling2D(),
                keras.layers.Flatten(),
                kb.layers.QuantDense(10, input_quantizer="ste_sign", kernel_quantizer="ste_sign"),
                keras.layers.Dense(4),
            ]
        )
    )
    assert {str(bits): count for bits, count in result.macs.items()} == expected["macs"]
    assert 8 * result.memory == expected["memory"]
    assert 8 * result.float32_memory == expected["float32_memory"]
    # Larq leaves gamma or beta and one statistic out of the parameters too; here they are all that there are.
    parameters = {str(bits): count for bits, count in result.parameters.items()}
    assert parameters == {**expected["parameters"], "32": expected["parameters"]["32"] + 2 * 8}


class Attend(keras.layers.Layer):
    """Holds layers that can be counted, and a product of its own that can't."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3, name="dense")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        x = self.dense(inputs)
        return ops.matmul(x, ops.swapaxes(x, 1, 2))


def test_what_it_cant_count_is_named():
    inputs = keras.Input((4, 5))
    x = keras.layers.LSTM(3, return_sequences=True, name="lstm")(inputs)
    x = Attend(name="attend")(x)
    x = ops.einsum("bij,bjk->bik", x, x)
    texts = []
    result = kb.profile.summary(keras.Model(inputs, x, name="model"), print_fn=texts.append)
    joined = " ".join(result.uncounted)
    assert "lstm: LSTM" in joined and "attend: Attend's own operations" in joined and "Einsum" in joined
    assert all("Not counted" in texts[0] and what in texts[0] for what in result.uncounted)
    assert result.macs == {32: 4 * 3 * 3}
    assert "36 + ?" in texts[0]


def test_names_are_no_markup():
    layer = kb.profile.LayerProfile("[red]:smile:", (), None, {32: 1}, 1, 4.0, 4.0, {})
    assert "| [red]:smile: |" in str(kb.profile.ModelProfile("model", (layer,)))


def test_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # what it is printed on has no say in its width
    model = kb.BinaryViT(**TINY, name="tiny")
    result = kb.profile.summary(model)
    printed = capsys.readouterr().out
    assert printed == f"{result}\n"
    lines = printed.splitlines()
    first_table = lines[1 : lines.index(next(line for line in lines if "tiny summary" in line))]
    assert len({len(line) for line in first_table}) == 1 and max(map(len, lines)) > 100
    for text in ("Layer", "1-bit MACs", "tiny stats", "OPs", f"{result.trainable_parameters:,}", "(-1, 4, 4, 8)"):
        assert text in printed
    assert sum(line.startswith("| block_") for line in lines) == 2
    block = next(line for line in lines if line.startswith("| block_0 "))
    inside = [layer for layer in result.layers if layer.name.split("/")[0] == "block_0"]
    assert f"{sum(layer.macs.get(1, 0) for layer in inside):,}" in block
    assert "block_0/attention/query/dense" not in printed
    assert "block_0/attention/query/dense" in result.table(depth=None)
    assert "block_0/attention " in result.table(depth=2) and "block_0/attention/query" not in result.table(depth=2)


def test_tracing_leaves_the_model_as_it_was():
    model = kb.BinaryViT(**TINY)
    weights = model.get_weights()
    profile(model)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    # Also when a layer raises.
    with pytest.raises(ValueError):
        profile(model, input_shape=(16, 16, 5))
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_input_shape_and_errors():
    with pytest.raises(ValueError, match="isn't built"):
        profile(keras.Sequential([keras.layers.Dense(2)]))
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match="Pass input_shape"):
        profile(model)
    assert profile(model, input_shape=(5, 6, 3)).macs == {32: 3 * 4 * 4 * 27}
