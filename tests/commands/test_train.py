"""binaryvit-train on a small data set in ImageNet's form, JPEGs of differing sizes, and on folders of images."""

import csv
import io
import json
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import keras_binaryvit as kb
from binaryvit_commands import convert, train, training
from keras_binaryvit.models import Preset, PresetMetadata, presets

tfds = pytest.importorskip("tensorflow_datasets")

MINI = {
    "image_shape": (224, 224, 3),
    "num_classes": 1000,
    "patch_size": 8,
    "embed_dims": (8,),
    "depths": (1,),
    "num_heads": (1,),
    "sr_ratios": (2,),
    "mlp_ratios": (1,),
}
CLASSES = 3


def jpeg(label, size, seed):
    """An image whose color tells its class."""
    noise = np.random.default_rng(seed).integers(0, 100, (*size, 3))
    noise[..., label] += 150
    file = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write(folder, files):
    """Writes a data set that TensorFlow Datasets takes for imagenet2012."""

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("5.1.0")
        name = "imagenet2012"

        def _info(self):
            # JPEGs as they are, damaged ones too; they are read as images.
            features = {"image": tfds.features.Tensor(shape=(), dtype=np.object_), "file_name": tfds.features.Text()}
            features["label"] = tfds.features.ClassLabel(num_classes=CLASSES)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: self._generate_examples(split) for split in files}

        def _generate_examples(self, split):
            for index, (content, label) in enumerate(files[split]):
                yield index, {"image": content, "file_name": f"{split}_{index}.JPEG", "label": label}

    Writer(data_dir=folder).download_and_prepare()
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "file_name": tfds.features.Text(),
        "label": tfds.features.ClassLabel(num_classes=CLASSES),
    }
    stored = folder / "imagenet2012" / "5.1.0" / "features.json"
    stored.write_text(json.dumps(tfds.features.FeaturesDict(features).to_json()))
    return folder


def examples(count):
    return [(jpeg(i % CLASSES, (40 + i, 60 - i), i), i % CLASSES) for i in range(count)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tfds"), {"train": examples(27), "validation": examples(12)})


@pytest.fixture
def run(monkeypatch, data_dir, tmp_path, capsys):
    """Runs the command and returns what it prints; its preset is a small network."""
    monkeypatch.setitem(presets.REGISTRY, "mini", (kb.BinaryViT, Preset(MINI, PresetMetadata("small", 0))))

    def run(*options, dataset="imagenet2012", data_dir=data_dir, output=tmp_path / "out"):
        arguments = ["--preset=mini", "--image-size=32", "--batch-size=8", "--epochs=2", "--learning-rate=2e-3"]
        arguments += [f"--data-dir={data_dir}", f"--output={output}", "--recipe=imagenet", *options]
        monkeypatch.setattr(sys, "argv", ["binaryvit-train", str(dataset), *arguments])
        train.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def eagerly():
    """To compile a network takes longer than the few steps of a test; `test_the_whole_recipe` compiles."""
    tf = pytest.importorskip("tensorflow")
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def teacher(folder, num_classes=CLASSES):
    model = kb.DeiT((32, 32, 3), num_classes, patch_size=16, embed_dim=16, depth=1, num_heads=1, mlp_ratio=1)
    model.save(folder / "teacher.keras")
    return folder / "teacher.keras"


def logged(output):
    """Returns the learning rates of all epochs."""
    with (output / "history.csv").open() as file:
        return [float(row["learning_rate"]) for row in csv.DictReader(file)]


@pytest.mark.once
def test_the_whole_recipe(run, tmp_path):
    options = (
        f"--teacher={teacher(tmp_path)}",
        "--label-weight=0.5",
        "--temperature=2",
        "--full-precision-kernel-epochs=1",
        "--weight-decay=0.01",
        "--clip-norm=1",
        "--drop-path-rate=0.1",
    )
    printed = run(*options)
    output = tmp_path / "out"
    assert "Accuracy on 'validation': " in printed and str(output / "model.keras") in printed
    model = keras.models.load_model(output / "model.keras")
    assert model.output_shape == (None, CLASSES)
    assert model.get_config()["drop_path_rate"] == 0.1
    binary = [layer for layer in model._flatten_layers() if getattr(layer, "is_binary", False)]
    assert len(binary) == 7  # what was trained with full-precision kernels first is binary in the end
    assert {path.name for path in output.iterdir()} >= {
        "recipe.json",
        "checkpoints",
        "full_precision_kernels",
        "model.keras",
    }
    # Both stages begin at the highest rate; the second one has two epochs, and half a cosine ends at the lowest.
    np.testing.assert_allclose(logged(output / "full_precision_kernels"), [2e-3], rtol=1e-6)
    np.testing.assert_allclose(logged(output), [2e-3, (2e-3 + 1e-5) / 2], rtol=1e-6)
    # A finished run that continues has nothing to train, and gives the same model.
    weights = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    run(*options, "--resume")
    again = keras.models.load_model(output / "model.keras")
    for weight, before in zip(again.weights, weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), before)
    # One that was begun otherwise doesn't.
    with pytest.raises(SystemExit, match="holds a run: continue it with --resume"):
        run(*options)
    with pytest.raises(SystemExit, match="can't continue differently: clip_norm: 1.0 then, 2.0 now"):
        run(*options, "--clip-norm=2", "--resume")


@pytest.mark.once
def test_a_real_network(eagerly, run, tmp_path):
    run("--full-precision", "--epochs=1", "--train-split=train[:16]")
    model = keras.models.load_model(tmp_path / "out" / "model.keras")
    assert not any(getattr(layer, "is_binary", False) for layer in model._flatten_layers())
    assert not any("clip" in weight.path for weight in model.weights)


@pytest.mark.once
def test_logits_of_a_few_passes(eagerly, run, tmp_path):
    options = (f"--teacher={teacher(tmp_path)}", "--teacher-passes=2", "--train-split=train[:16]", "--epochs=3")
    options += ("--validation-split=train[16:]", "--full-precision-kernel-epochs=1")
    run(*options)
    output = tmp_path / "out"
    # Both stages read one file; an image of another pass would have no logits.
    (file,) = output.rglob("teacher_logits.npy")
    assert len(np.load(file)) == 2 * 16
    assert len(logged(output)) == 3
    assert kb.training.TrainingCheckpoint(output / "checkpoints").completed_epochs == 3
    # A version without an option trained with its default.
    recipe = json.loads((output / "recipe.json").read_text())
    del recipe["clip_norm"], recipe["temperature"]
    (output / "recipe.json").write_text(json.dumps(recipe))
    run(*options, "--resume")
    with pytest.raises(SystemExit, match="temperature: 1.0 then, 2.0 now"):
        (output / "recipe.json").write_text(json.dumps(recipe))
        run(*options, "--temperature=2", "--resume")


@pytest.mark.once
def test_a_run_is_prolonged(eagerly, run, tmp_path):
    options = ("--train-split=train[:8]", "--decay-epochs=2")
    run(*options, "--epochs=3")
    output = tmp_path / "out"
    with pytest.raises(SystemExit, match="epochs: 3 then, 4 now"):
        run(*options, "--epochs=4", "--resume")
    # Back to before the learning rate fell.
    for epoch in (2, 3):
        (output / "checkpoints" / f"epoch-000{epoch}.npz").unlink()
    run(*options, "--epochs=4", "--resume")
    middle = (2e-3 + 1e-5) / 2
    np.testing.assert_allclose(logged(output), [2e-3, 2e-3, middle, 2e-3, 2e-3, middle], rtol=1e-6)


def test_a_teacher_of_other_classes(run, tmp_path):
    with pytest.raises(SystemExit, match="has 5 classes, the student 'mini' has 3"):
        run(f"--teacher={teacher(tmp_path, num_classes=5)}")


@pytest.mark.parametrize(
    "images, batch_size, replicas, expected",
    [(50_000, 512, 8, 400), (10_000, 64, 1, 50), (10_000, 4, 8, 8), (7, 8, 2, 8)],
)
def test_batches_of_the_evaluation(images, batch_size, replicas, expected):
    assert training.evaluation_batch("test", images, batch_size, replicas) == expected


@pytest.mark.parametrize(
    "splits, expected",
    [({"train": 9, "validation": 5, "test": 7}, "validation"), ({"train": 9, "test": 7}, "test")],
)
def test_split_of_the_evaluation(splits, expected):
    info = kb.data.DatasetInfo("some", 3, ("a", "b", "c"), (None, None, 3), splits)
    assert training.evaluation_split(info) == expected


def test_unknown_preset(run):
    with pytest.raises(SystemExit, match="Unknown preset 'maxi'"):
        run("--preset=maxi")


def test_a_split_smaller_than_a_batch(run):
    with pytest.raises(SystemExit, match="has fewer images than a batch, 8"):
        run("--train-split=train[:5]")


@pytest.mark.once
def test_a_damaged_image_in_the_middle_of_an_epoch(eagerly, run, tmp_path):
    files = examples(27)
    folder = write(tmp_path / "tfds", {"train": files[:13] + [(b"garbage", 0)] + files[14:], "validation": files[:8]})
    with pytest.raises(SystemExit, match="can't be decoded; the last checkpoint is as it was"):
        run(data_dir=folder)
    (position,) = kb.data.find_corrupt("imagenet2012", data_dir=folder)
    split = f"--train-split=train[:{position}]+train[{position + 1}:]"
    assert "Accuracy on 'validation': " in run(split, "--resume", data_dir=folder)


def test_from_a_folder_of_photographs_to_a_file_with_names(run, monkeypatch, tmp_path, capsys):
    photos = tmp_path / "my phötos"
    names = ("a cat", "dog", "élan")
    for label, name in enumerate(names):
        (photos / name).mkdir(parents=True)
        for seed in range(10):
            (photos / name / f"{seed}.jpg").write_bytes(jpeg(label, (36, 48), seed))
    run("--recipe=small_images", "--image-size=32", "--epochs=4", dataset=photos)
    output = tmp_path / "out"
    assert {"curve.png", "confusion.png", "history.csv"} <= {path.name for path in output.iterdir()}
    # That of the next step: 3 of them an epoch, of which one epoch warms up.
    np.testing.assert_allclose(logged(output)[-1], 1e-5, rtol=1e-4)
    np.testing.assert_allclose(logged(output)[0], 2e-3, rtol=1e-6)
    model = keras.models.load_model(output / "model.keras")
    assert model.class_names == names
    expected = model.classify(photos / "dog" / "3.jpg", top=1)[0][0]
    assert expected.label in names

    arguments = [output / "model.keras", output / "model.tflite", "--ops=fused", f"--verify={photos}", "--images=3"]
    monkeypatch.setattr(sys, "argv", ["binaryvit-convert", *map(str, arguments)])
    convert.main()
    assert "agreement" in capsys.readouterr().out
    file = (output / "model.tflite").read_bytes()
    assert all(name.encode() in file for name in names)

    # What the runtime says of a photograph that a camera has turned is what the model says.
    runtime = pytest.importorskip("binaryvit_runtime.run")
    for label, orientation in enumerate((6, 8, 3)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = tmp_path / f"{orientation}.jpg"
        Image.open(io.BytesIO(jpeg(label, (50, 70), 100 + label))).save(turned, exif=exif, quality=95)
        (expected,) = model.classify(turned)
        assert runtime.main([str(output / "model.tflite"), str(turned), "--json"]) == 0
        received = json.loads(capsys.readouterr().out)[0]["classes"]
        assert [entry["label"] for entry in received] == [prediction.label for prediction in expected]
        probabilities = [[entry["probability"] for entry in received], [entry.probability for entry in expected]]
        np.testing.assert_allclose(*probabilities, atol=1e-4)  # float32 sums in another order
