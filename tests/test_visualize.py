"""visualize: what the figures show, read back from them."""

import sys

import keras
import numpy as np
import pytest
from layer_checks import flat_vit, normal, np_attention, np_norm, numpy, randomize

import keras_binaryvit as kb

pytest.importorskip("matplotlib")

PYRAMID = {
    "image_shape": (16, 24, 3),
    "num_classes": 5,
    "embed_dims": (8, 16),
    "depths": (1, 1),
    "num_heads": (2, 2),
    "sr_ratios": (2, 1),
    "mlp_ratios": (2, 2),
}
FLAT = {"image_shape": (8, 12, 3), "num_classes": 5, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def attention_of_first_block(model, image):
    """Returns it, `(heads, queries, keys)`, by an independent implementation."""
    block = model.get_layer("block_0")
    randomize(block)
    queries, keys = block.attention.compute_output_spec(block.input, return_attention_scores=True)[1].shape[2:]
    block.attention.binarizer.clip.assign(1.5 / keys)
    x = numpy(model.get_layer("patch_embedding")(image[None]))
    attention = np_attention(block.attention, np_norm(block.attention_norm, x))[1][0]
    assert attention.shape[1:] == (queries, keys) and 0 < np.mean(attention > 0) < 1
    return attention


def drawn(figure):
    """Returns the maps over the image, panel by panel."""
    picture, *panels = figure.axes
    assert picture.get_title() == "image" and len(picture.images) == 1
    return {panel.get_title(): np.asarray(panel.images[1].get_array()) for panel in panels}


def test_attention_maps_of_a_pyramid():
    model, image = kb.BinaryViT(**PYRAMID), normal(16, 24, 3)
    attention = attention_of_first_block(model, image)  # 4 x 6 queries, 2 x 3 keys
    maps = drawn(kb.visualize.attention_maps(model, image))
    assert list(maps) == ["block_0", "block_1"] and maps["block_1"].shape == (2, 3)
    np.testing.assert_allclose(maps["block_0"], attention.mean(axis=(0, 1)).reshape(2, 3), rtol=1e-5)
    # Pixel (9, 21) lies in the patch of row 2 and column 5, the query 2 * 6 + 5.
    maps = drawn(kb.visualize.attention_maps(model, image, blocks=[0], head=1, query=(9, 21)))
    assert list(maps) == ["block_0"]
    np.testing.assert_allclose(maps["block_0"], attention[1, 17].reshape(2, 3), rtol=1e-5)


def test_attention_maps_of_a_class_token():
    model, image = flat_vit(**FLAT, use_class_token=True, use_pooling_branches=False), normal(8, 12, 3)
    attention = attention_of_first_block(model, image)  # a token and 2 x 3 patches
    (token,) = drawn(kb.visualize.attention_maps(model, image)).values()
    np.testing.assert_allclose(token, attention[:, 0, 1:].mean(axis=0).reshape(2, 3), rtol=1e-5)
    (pixel,) = drawn(kb.visualize.attention_maps(model, image, query=(4, 3), head=0)).values()
    np.testing.assert_allclose(pixel, attention[0, 1 + 3, 1:].reshape(2, 3), rtol=1e-5)


def test_attention_maps_cover_the_image():
    figure = kb.visualize.attention_maps(flat_vit(**FLAT), normal(8, 12, 3), query=(0, 11))
    for panel in figure.axes[1:]:
        picture, seen = panel.images
        assert list(seen.get_extent()) == list(picture.get_extent()) == [-0.5, 11.5, 7.5, -0.5]
        assert [point.get_xydata().tolist() for point in panel.lines] == [[[11, 0]]]


def test_attention_maps_say_what_is_wrong():
    model, image = flat_vit(**FLAT), normal(8, 12, 3)
    for arguments, message in [
        ({"blocks": [1]}, "blocks 0 ... 0"),
        ({"head": 2}, "heads 0 ... 1"),
        ({"query": (8, 0)}, "query is a pixel"),
    ]:
        with pytest.raises(ValueError, match=message):
            kb.visualize.attention_maps(model, image, **arguments)
    with pytest.raises(ValueError, match="one image of shape"):
        kb.visualize.attention_maps(model, image[None])
    with pytest.raises(ValueError, match="no BinaryTransformerBlock"):
        kb.visualize.attention_maps(kb.deploy.freeze(model), image)


def test_latent_weights():
    model = kb.BinaryViT(**PYRAMID)
    figure = kb.visualize.latent_weights(model, bins=20)
    titles = [panel.get_title() for panel in figure.axes]
    assert len(titles) == 7 + 1 + 6 and titles.index("patch_merging_1/convolution") == 7
    panel = figure.axes[titles.index("block_0/feed_forward/expand")]
    kernel = numpy(model.get_layer("block_0").feed_forward.expand.dense.kernel)
    heights, _ = np.histogram(kernel - kernel.mean(axis=0), bins=20)
    assert [bar.get_height() for bar in panel.patches] == heights.tolist()
    assert [line.get_xdata()[0] for line in panel.lines] == [0]
    convolution = figure.axes[7]  # not centered
    heights, _ = np.histogram(numpy(model.get_layer("patch_merging_1").convolution.kernel), bins=20)
    assert [bar.get_height() for bar in convolution.patches] == heights.tolist()


def test_latent_weights_of_a_layer_with_several_thresholds():
    layer = kb.layers.QuantDense(4, kernel_quantizer=kb.quantizers.SteTern(0.3))
    layer.build((None, 5))
    (panel,) = kb.visualize.latent_weights(layer).axes
    assert [line.get_xdata()[0] for line in panel.lines] == [-0.3, 0.3]


def test_latent_weights_need_some():
    for model in (kb.DeiT.from_preset("deit_tiny", depth=1), kb.deploy.freeze(kb.BinaryViT(**PYRAMID))):
        with pytest.raises(ValueError, match="no layer such as QuantDense"):
            kb.visualize.latent_weights(model)


def lines(figure):
    """Returns x, q(x) and dq/dx as drawn."""
    value, gradient = figure.axes
    x, q = value.lines[0].get_data()
    return x, q, gradient.lines[0].get_ydata()


@pytest.mark.parametrize(
    "quantizer, limits, function, derivative",
    [
        ("ste_sign", None, lambda x: np.where(x >= 0, 1, -1), lambda x: np.abs(x) <= 1),
        ("approx_sign", None, lambda x: np.where(x >= 0, 1, -1), lambda x: np.maximum(2 - 2 * np.abs(x), 0)),
        # The unit's mean magnitude over -1 ... 3 is 1.25, its mean 1.
        (
            kb.quantizers.ScaledSign(centered=True),
            (-1, 3),
            lambda x: np.where(x >= 1, 1.25, -1.25),
            lambda x: (np.abs(x - 1) <= 1) - np.mean(np.abs(x - 1) <= 1),
        ),
        (kb.quantizers.ElasticBinarizer(0.1), None, lambda x: np.where(x > 0.05, 0.1, 0), lambda x: x <= 0.1),
    ],
)
def test_quantizer(quantizer, limits, function, derivative):
    x, value, gradient = lines(kb.visualize.quantizer(quantizer, limits))
    assert len(x) > 500
    # Beside the places where it jumps.
    for actual, expected in ((value, function(x)), (gradient, derivative(x))):
        assert np.mean(np.isclose(actual, expected, rtol=1e-3, atol=2e-3)) > 0.99
    expected_limits = limits or ((0, 0.2) if isinstance(quantizer, kb.quantizers.ElasticBinarizer) else (-2, 2))
    np.testing.assert_allclose((x[0], x[-1]), expected_limits)


def test_quantizer_of_nothing():
    with pytest.raises(ValueError, match="nothing to draw"):
        kb.visualize.quantizer(None)


def test_learning_curve():
    history = {"loss": [1.0, 0.5], "accuracy": [0.25, 0.5], "val_accuracy": [0.3, 0.4], "flip_ratio": [0.1, 0.0]}
    (panel,) = kb.visualize.learning_curve(history).axes
    drawn = {line.get_label(): line.get_data() for line in panel.lines}
    assert drawn.keys() == {"training", "validation"}
    np.testing.assert_array_equal(drawn["training"], ([1, 2], [0.25, 0.5]))
    np.testing.assert_array_equal(drawn["validation"], ([1, 2], [0.3, 0.4]))
    with pytest.raises(ValueError, match="must have accuracy and val_accuracy. Received: loss"):
        kb.visualize.learning_curve({"loss": [1.0]})


@pytest.mark.parametrize("classes", [3, 31])
def test_confusion_matrix(classes):
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(1, classes, 90), rng.integers(0, classes, 90)  # of class 0 there is none
    names = [f"class {index}" for index in range(classes)]
    (panel,) = kb.visualize.confusion_matrix(labels, predictions, names).axes
    pairs = list(zip(labels.tolist(), predictions.tolist(), strict=True))
    counts = [[pairs.count((true, predicted)) for predicted in range(classes)] for true in range(classes)]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    np.testing.assert_allclose(np.asarray(panel.images[0].get_array()), shares)
    assert panel.images[0].get_clim() == (0, 1)
    assert panel.get_title() == f"Accuracy {sum(true == predicted for true, predicted in pairs) / 90:.2%}"
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("predicted", "true")
    written = {text.get_position(): text.get_text() for text in panel.texts}
    if classes > 30:  # more can't be read
        assert not written
        return
    # x is the column, the predicted class.
    assert written == {(x, y): str(counts[y][x]) for x in range(classes) for y in range(classes)}
    for labelled in (panel.get_xticklabels(), panel.get_yticklabels()):
        assert [label.get_text() for label in labelled] == names


@pytest.mark.parametrize("labels, predictions", [([0, 1], [0, 2]), ([-1], [0])])
def test_confusion_matrix_of_other_classes(labels, predictions):
    with pytest.raises(ValueError, match="There are 2 class names. Received: classes from"):
        kb.visualize.confusion_matrix(labels, predictions, ["a", "b"])


def test_figures_are_saved_without_a_display(tmp_path):
    kb.visualize.quantizer("approx_sign").savefig(tmp_path / "quantizer.png")
    assert (tmp_path / "quantizer.png").read_bytes()[1:4] == b"PNG"


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install keras-binaryvit\[examples\]"):
        kb.visualize.quantizer("approx_sign")
