import json

import keras
import numpy as np
import pytest
from deploy_checks import randomize
from requirements import needs_interpreter
from test_flatbuffer import build

import keras_binaryvit as kb
from keras_binaryvit.deploy import add_metadata
from keras_binaryvit.deploy import flatbuffer as tflite
from keras_binaryvit.layers import ImagePreprocessor

schema = pytest.importorskip("tensorflow.lite.python.schema_py_generated", reason="TensorFlow isn't installed")

PREPROCESSOR = ImagePreprocessor(
    (8, 6), (0.5, 0.25, 0.125), (1.0, 2.0, 4.0), resize_size=(12, 9), interpolation="bicubic"
)


def classifier(last="FULLY_CONNECTED", **changes):
    tensors = [
        ("x", (1, 8, 6, 3), "float32", None),
        ("w", (4, 144), "float32", np.arange(576, dtype="float32")),
        ("y", (1, 4), "float32", None),
    ]
    return build(tensors, [(last, (0, 1), (2,), None)], **changes)


def entries(flatbuffer):
    """Returns {name: content} of a flatbuffer's metadata, read with TensorFlow's classes."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
    return {entry.name.decode(): bytes(bytearray(model.buffers[entry.buffer].data)) for entry in model.metadata or []}


def content(flatbuffer):
    return json.loads(entries(flatbuffer)["binaryvit"])


def test_writes_what_is_known():
    assert content(add_metadata(classifier(), PREPROCESSOR, ["ant", "bee", "Mücke", "fly"])) == {
        "version": 2,
        "mean": [0.5, 0.25, 0.125],
        "std": [1.0, 2.0, 4.0],
        "resize_size": [12, 9],
        "interpolation": "bicubic",
        "outputs": "logits",
        "labels": ["ant", "bee", "Mücke", "fly"],
    }
    assert content(add_metadata(classifier("SOFTMAX"))) == {"version": 2, "outputs": "probabilities"}
    crop = add_metadata(classifier(), ImagePreprocessor((8, 6), (0, 0, 0), (1, 1, 1)))
    assert content(crop)["resize_size"] == [8, 6] and content(crop)["interpolation"] == "bilinear"


def model_with_everything():
    """A classifier whose root has all fields of the schema."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(classifier(), 0))
    model.description, model.metadataBuffer = "described", [1]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.inputs, signature.outputs, signature.subgraphIndex = "serve", [], [], 0
    model.signatureDefs = [signature]
    model.metadata = []
    for name in ("first", "binaryvit", "last"):
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer, buffer.data = name, len(model.buffers), np.frombuffer(name.encode(), np.uint8)
        model.metadata.append(entry)
        model.buffers.append(buffer)
    builder = tflite_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tflite_builder():
    import flatbuffers

    return flatbuffers.Builder(1024)


@pytest.mark.parametrize("flatbuffer", [classifier(), model_with_everything()], ids=["bare", "everything"])
def test_all_else_stays(flatbuffer):
    def unpacked(flatbuffer):
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))

    changed = add_metadata(flatbuffer, PREPROCESSOR)
    assert tflite.read(changed) == tflite.read(flatbuffer)
    old, new = unpacked(flatbuffer), unpacked(changed)
    assert (new.version, new.description) == (old.version, old.description)
    assert np.array_equal(new.metadataBuffer, old.metadataBuffer)
    assert [s.signatureKey for s in new.signatureDefs or []] == [s.signatureKey for s in old.signatureDefs or []]
    replaced = {entry.buffer for entry in old.metadata or [] if entry.name == b"binaryvit"}
    for index, (before, after) in enumerate(zip(old.buffers, new.buffers, strict=False)):
        assert index in replaced or np.array_equal(before.data, after.data)
    others = {name: data for name, data in entries(changed).items() if name != "binaryvit"}
    assert others == {name: data for name, data in entries(flatbuffer).items() if name != "binaryvit"}
    assert [entry.name for entry in new.metadata].count(b"binaryvit") == 1


def test_constants_are_aligned():
    flatbuffer = classifier()
    constant = np.arange(576, dtype="float32").tobytes()
    for size in range(1, 20):
        changed = add_metadata(flatbuffer, None, ["l" * size] * 4)
        assert changed.index(constant) % 16 == 0
        assert changed.index(b'{"version"') % 16 == 0


@needs_interpreter
def test_interpreters_run_it_as_before():
    import tensorflow as tf

    model = keras.Sequential([keras.Input((8, 6, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalMaxPooling2D()])
    x = np.random.default_rng(0).normal(size=(1, 8, 6, 3)).astype("float32")

    def run(flatbuffer):
        interpreter = tf.lite.Interpreter(model_content=flatbuffer)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    flatbuffer = kb.deploy.convert(model)
    once = add_metadata(flatbuffer, PREPROCESSOR, list("abcd"))
    twice = add_metadata(once, None, list("efgh"))
    for changed in once, twice:
        np.testing.assert_array_equal(kb.deploy.run(changed, x), kb.deploy.run(flatbuffer, x))
        np.testing.assert_array_equal(run(changed), run(flatbuffer))
    assert content(twice)["labels"] == list("efgh") and "min_runtime_version" in entries(twice)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((ImagePreprocessor((8, 6), (0.5,), (1.0,)),), r"takes images of shape \(8, 6, 3\).* gives \(8, 6, 1\)"),
        ((ImagePreprocessor(8, (0, 0, 0), (1, 1, 1)),), r"takes images of shape \(8, 6, 3\).* gives \(8, 8, 3\)"),
        ((None, ["a", "b"]), "has 4 classes. Received: 2 class names"),
        ((None, ["a", "b", " ", "d"]), "Received: ' ' for class 2"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        add_metadata(classifier(), *arguments)


def test_models_that_cannot_have_it():
    with pytest.raises(ValueError, match=r"one input .* gives \[\(1, 4\), \(1, 8, 6, 3\)\]"):
        add_metadata(classifier(outputs=(2, 0)))
    with pytest.raises(ValueError, match="no TFLite flatbuffer"):
        add_metadata(b"hello")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(classifier(), 0))
    model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, 4000, 2304
    builder = tflite_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(ValueError, match="above 2 GB"):
        add_metadata(bytes(builder.Output()).ljust(6304, b"\0"))


@needs_interpreter
def test_command_line_writes_a_data_sets(run_converter, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.save(tmp_path / "model.keras")
    (tmp_path / "names.txt").write_text("".join(f"digit {index}\n" for index in range(10)))
    (tmp_path / "short.txt").write_text("one\ntwo\n")

    def convert(output, *arguments):
        run_converter("to_lce.py", tmp_path / "model.keras", tmp_path / output, "--images", 2, *arguments)

    convert("a.tflite", "--trained-on", "digits", "--verify", "digits", "--class-names", tmp_path / "names.txt")
    written = content((tmp_path / "a.tflite").read_bytes())
    assert written["labels"] == [f"digit {index}" for index in range(10)]
    assert written["mean"] == [0.3052] and written["std"] == [0.376] and written["resize_size"] == [8, 8]
    convert("b.tflite", "--trained-on", "digits", "--no-verify")
    assert content((tmp_path / "b.tflite").read_bytes()) == written | {"labels": list("0123456789")}
    convert("c.tflite", "--verify", "digits")
    assert "binaryvit" not in entries((tmp_path / "c.tflite").read_bytes())
    with pytest.raises(SystemExit, match="has 10 classes. Received: 2 class names"):
        convert("d.tflite", "--class-names", tmp_path / "short.txt")
    assert not (tmp_path / "d.tflite").exists()


@needs_interpreter
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="about the other backends")
def test_a_models_own_preprocessor_and_class_names(tmp_path):
    runtime = pytest.importorskip("binaryvit_runtime")
    preprocessor = kb.layers.ImagePreprocessor(16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), resize_size=20)
    arguments = {"preprocessor": preprocessor, "class_names": ("ant", "bee", "cat")}
    model = randomize(kb.BinaryViT((16, 16, 3), 3, 4, (16, 32), (1, 1), (1, 2), (2, 1), (2, 1), **arguments))
    classifier = runtime.Classifier(kb.deploy.convert(model, "fused"))
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype("uint8")
    image = np.repeat(np.repeat(noise, 10, axis=0), 8, axis=1)  # large, and without detail that is rounded differently
    ours, theirs = model.classify(image, top=3)[0], classifier.classify(image, top=3)
    assert [(p.index, p.label) for p in ours] == [(p.index, p.label) for p in theirs]
    np.testing.assert_allclose([p.probability for p in ours], [p.probability for p in theirs], atol=0.1)
    without_top = kb.BinaryViT(**{**model.get_config(), "preprocessor": preprocessor, "include_top": False})
    assert "binaryvit" not in entries(kb.deploy.convert(without_top))
