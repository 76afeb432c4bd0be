"""binaryvit-run, binaryvit-benchmark and the classes behind them."""

import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pytest
from binaryvit_runtime import Classifier, Interpreter, OperatorTime, Prediction, Preprocessor, benchmark, run
from classifiers import classifier
from models import Tensor, single_op
from PIL import Image

SHAPE = (4, 4, 3)
KERNEL = np.random.default_rng(0).normal(size=(6, 48))
METADATA = {
    "version": 1,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "outputs": "logits",
    "labels": list("abcdef"),
}
PIXELS = np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8)


def probabilities(pixels=PIXELS):
    """Softmax of what the dense layer gives."""
    image = (pixels / 255 - METADATA["mean"]) / METADATA["std"]
    exponentials = np.exp(KERNEL @ image.ravel())
    return exponentials / exponentials.sum()


def model(**changes):
    return classifier(KERNEL, SHAPE, json.dumps(METADATA | changes).encode())


@pytest.fixture
def files(tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes(model())
    (tmp_path / "bare.tflite").write_bytes(classifier(KERNEL, SHAPE))
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[::-1]).save(tmp_path / "b.png")
    (tmp_path / "text.png").write_text("hello")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- Classifier


def test_classifier_gives_the_most_probable_classes():
    expected = probabilities()
    predictions = Classifier(model()).classify(PIXELS, top=3)
    assert [prediction.index for prediction in predictions] == list(np.argsort(-expected)[:3])
    for prediction in predictions:
        assert prediction.label == "abcdef"[prediction.index]
        assert prediction.probability == pytest.approx(expected[prediction.index], rel=1e-4)
    assert len(Classifier(model()).classify(Image.fromarray(PIXELS), top=100)) == 6


@pytest.mark.parametrize("batch", [1, 2])
def test_classifier_takes_several_images(batch):
    images = [PIXELS, PIXELS[::-1], Image.fromarray(PIXELS[:, ::-1])]
    one = Classifier(classifier(KERNEL, SHAPE, json.dumps(METADATA).encode(), batch=batch))
    results = one.classify(images, top=2)
    assert len(results) == 3 and one.classify([]) == []
    for image, (first, second) in zip(images, results):
        expected = probabilities(np.asarray(image))
        assert [first.index, second.index] == list(np.argsort(-expected)[:2])
        assert first.probability == pytest.approx(expected.max(), rel=1e-4)
        assert one.classify(image, 1) == [first]


def test_arguments_come_before_metadata():
    other = Preprocessor((0, 0, 0), (1, 1, 1))
    given = Classifier(model(), preprocessor=other, class_names=list("uvwxyz"), outputs="probabilities")
    scores = KERNEL @ (PIXELS / 255).ravel()
    first = given.classify(PIXELS, 1)[0]
    assert first == Prediction(int(scores.argmax()), "uvwxyz"[scores.argmax()], pytest.approx(scores.max(), rel=1e-4))
    unnamed = Classifier(classifier(KERNEL, SHAPE), preprocessor=other)
    assert unnamed.class_names == tuple("012345")
    assert Classifier(model(outputs="probabilities"), preprocessor=other).classify(PIXELS, 1)[0].probability == (
        pytest.approx(scores.max(), rel=1e-4)
    )


@pytest.mark.parametrize(
    "flatbuffer, arguments, message",
    [
        (classifier(KERNEL, SHAPE), {}, "doesn't say how to prepare its images"),
        (model(labels=["a"]), {}, "has 6 classes, and there are 1 class names"),
        (model(), {"class_names": ["a", "b"]}, "has 6 classes, and there are 2 class names"),
        (model(mean=[0], std=[1]), {}, "takes 3 channels, and mean and std have 1"),
        (model(), {"outputs": "scores"}, "Received: 'scores'"),
        (classifier(KERNEL[:, :32], (4, 4, 2), json.dumps(METADATA).encode()), {}, r"takes \[\(1, 4, 4, 2\)\]"),
        (classifier(KERNEL, (48,), json.dumps(METADATA).encode()), {}, r"takes \[\(1, 48\)\]"),
    ],
)
def test_what_does_not_fit_is_refused(flatbuffer, arguments, message):
    with pytest.raises(ValueError, match=message):
        Classifier(flatbuffer, **arguments)


def test_models_that_do_not_classify():
    bits = single_op("LceQuantize", [Tensor((1, 2, 2, 3), "float32")], Tensor((1, 2, 2, 1), "int32"))
    with pytest.raises(ValueError, match=r"gives \(batch, classes\). This model gives \[\(1, 2, 2, 1\)\]"):
        Classifier(bits, preprocessor=Preprocessor((0, 0, 0), (1, 1, 1)))
    floats = single_op("LceDequantize", [Tensor((1, 2, 2, 1), "int32")], Tensor((1, 2, 2, 1), "float32"))
    with pytest.raises(ValueError, match="takes float32. This model takes int32"):
        Classifier(floats, preprocessor=Preprocessor((0,), (1,)))
    with pytest.raises(ValueError, match="top must be positive"):
        Classifier(model()).classify(PIXELS, 0)


# ---- binaryvit-run


def test_run_prints_classes(files, capsys):
    assert run.main(["model.tflite", "a.png", "--top", "2"]) == 0
    expected = probabilities()
    lines = [f"{expected[index]:7.2%}  {'abcdef'[index]}" for index in np.argsort(-expected)[:2]]
    assert capsys.readouterr().out.splitlines() == lines
    assert run.main(["model.tflite", "a.png", "b.png", "--top", "1", "--threads", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == ["a.png", "b.png"]
    assert lines[3].split()[-1] == "abcdef"[probabilities(PIXELS[::-1]).argmax()]


def test_run_prints_json(files, capsys):
    assert run.main(["model.tflite", "b.png", "a.png", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["image"] for result in results] == ["b.png", "a.png"]
    expected = probabilities()
    assert [entry["index"] for entry in results[1]["classes"]] == list(np.argsort(-expected)[:5])
    first = results[1]["classes"][0]
    assert first["label"] == "abcdef"[first["index"]] and 0 < first["probability"] < 1


def test_run_without_metadata(files, capsys):
    assert run.main(["bare.tflite", "a.png"]) == 1
    error = capsys.readouterr().err
    assert "bare.tflite doesn't say how to prepare its images: --mean and --std must be given, such as" in error
    assert run.main(["bare.tflite", "a.png", "--mean", "0,0,0"]) == 1
    assert ": --std must be given" in capsys.readouterr().err
    (files / "names.txt").write_text("one\ntwo\nthree\nfour\nfive\nsix\n")
    arguments = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4", "--class-names", "names.txt", "--top", "1"]
    assert run.main(["bare.tflite", "a.png", *arguments]) == 0
    names = "one two three four five six".split()
    assert capsys.readouterr().out == f"{probabilities().max():7.2%}  {names[probabilities().argmax()]}\n"


def test_run_options_replace_metadata(files, capsys):
    assert run.main(["model.tflite", "a.png", "--json", "--mean", "0.1,0.1,0.1"]) == 0
    image = (PIXELS / 255 - 0.1) / METADATA["std"]
    assert json.loads(capsys.readouterr().out)[0]["classes"][0]["index"] == (KERNEL @ image.ravel()).argmax()


def test_run_goes_on_after_a_bad_image(files, capsys):
    assert run.main(["model.tflite", "text.png", "nowhere.png", "a.png", "--top", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "a.png" and len(captured.out.splitlines()) == 2
    assert "'text.png' can't be read as an image" in captured.err and "no image file 'nowhere.png'" in captured.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.tflite", "a.png"], "no model file 'nowhere.tflite'"),
        (["a.png", "a.png"], "no TFLite flatbuffer"),
        (["model.tflite", "a.png", "--top", "0"], "--top must be positive"),
        (["model.tflite", "a.png", "--threads", "0"], "num_threads must be between 1 and 64"),
        (["model.tflite", "a.png", "--class-names", "nowhere.txt"], "nowhere.txt"),
        (["model.tflite", "a.png", "--std", "1,1,0"], "std be positive"),
    ],
)
def test_run_says_what_is_wrong(arguments, message, files, capsys):
    assert run.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("binaryvit-run: ") and message in captured.err and not captured.out


def test_run_keeps_terminals_from_being_steered(files, capsys):
    (files / "model.tflite").write_bytes(model(labels=["\x1b[2J"] * 6))
    assert run.main(["model.tflite", "a.png"]) == 0
    assert "\x1b" not in capsys.readouterr().out


# ---- binaryvit-benchmark


@pytest.fixture
def quantizer(tmp_path):
    flatbuffer = single_op("LceQuantize", [Tensor((1, 8, 8, 40), "float32")], Tensor((1, 8, 8, 2), "int32"))
    path = tmp_path / "quantizer.tflite"
    path.write_bytes(flatbuffer)
    return path


def test_benchmark_prints_tables(files, quantizer, capsys):
    assert benchmark.main(["model.tflite", "--compare", str(quantizer), "--threads", "1,2", "--runs", "7"]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[0].split() == "model MB threads median p10 p90 p99 copies inferences/s time / first".split()
    assert [line.split()[0] for line in lines[1:5]] == ["model.tflite", "quantizer.tflite"] * 2
    assert [line.split()[2] for line in lines[1:5]] == ["1", "1", "2", "2"]
    assert lines[1].endswith(" 1.00") and lines[3].endswith(" 1.00")
    assert (
        "7 inferences of each" in output
        and "Peak memory" in output
        and importlib.metadata.version("ai-edge-litert") in output
    )


def test_benchmark_prints_json(quantizer, capsys):
    assert benchmark.main([str(quantizer), "--runs", "9", "--warm-up", "4", "--json", "--profile"]) == 0
    report = json.loads(capsys.readouterr().out)
    (result,) = report["results"]
    times = result["milliseconds"]
    assert 0 < times["p10"] <= times["median"] <= times["p90"] <= times["p99"]
    assert result["bytes"] == quantizer.stat().st_size and result["threads"] == 1
    assert report["peak_memory_bytes"] >= report["memory_before_models_bytes"] > 2**20
    assert report["kernels"] == Interpreter(quantizer).kernels
    (operator,) = result["operators"]
    assert operator["op"] == "LceQuantize" and operator["output"] == "tensor_1" and operator["calls"] == 9
    assert 0 < operator["nanoseconds"] < 9e6 * times["mean"]


def test_benchmark_prints_a_profile(files, quantizer, capsys):
    assert benchmark.main([str(quantizer), "--runs", "3", "--profile"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["LceQuantize", "1"] in [line[:2] for line in lines]
    assert ["LceQuantize", "tensor_1"] in [line[:2] for line in lines]
    assert ["LiteRT", "and", "XNNPACK"] in [line[:3] for line in lines]
    assert benchmark.main(["model.tflite", "--runs", "3", "--profile"]) == 0  # without a binary operator
    assert "slowest" not in capsys.readouterr().out


def test_benchmark_shares_out_the_time(monkeypatch, files, capsys):
    """Two inferences of 1 and 3 ms, in which three operators took 0.5, 0.3 and 0.2 ms altogether."""
    operators = [
        OperatorTime("A", "x", 2, 200_000),
        OperatorTime("B", "y", 2, 500_000),
        OperatorTime("A", "z", 2, 300_000),
    ]
    result = benchmark.Measurement(
        "model.tflite", 1_500_000, 1, np.array([1.0, 3.0]), np.array([0.25, 0.75]), operators
    )
    monkeypatch.setattr(benchmark, "measure", lambda *_: [result])
    assert benchmark.main(["model.tflite", "--profile"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:3] == ["model.tflite", "1.50", "1"] and rows[1][3] == "2.000"
    assert rows[1][11:13] == ["0.500", "ms"]
    for row in (
        ["A", "2", "0.250", "12.5%"],
        ["B", "1", "0.250", "12.5%"],
        ["LiteRT", "and", "XNNPACK", "1.500", "75.0%"],
        ["an", "inference", "2.000", "100.0%"],
        ["B", "y", "0.250", "12.5%"],
    ):
        assert row in rows
    assert [row[1] for row in rows if row[:1] in (["A"], ["B"]) and len(row) == 4 and row[1].isalpha()] == [
        "y",
        "z",
        "x",
    ]


def test_benchmark_measures_after_the_warm_up(monkeypatch, quantizer):
    """The clock says how often it was asked; the first inferences don't count."""
    ticks = iter(range(1000))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks) ** 2)
    steps = []
    results = benchmark.measure([str(quantizer)] * 2, 1, 3, 2, False, steps.append)
    # A prediction asks four times, twice around the inference; in the warm-up three times. What begins at tick t
    # takes (t + 3)^2 - t^2, of which the inference takes (t + 2)^2 - (t + 1)^2. The models take turns.
    np.testing.assert_array_equal(results[0].times, [27e3, 43e3, 59e3])
    np.testing.assert_array_equal(results[1].times, [35e3, 51e3, 67e3])
    np.testing.assert_array_equal(results[0].copies, [54e3, 86e3, 118e3])
    assert len(steps) == 10 and results[0].operators == [] and results[0].median == 43e3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.tflite"], "no model file 'nowhere.tflite'"),
        (["model.tflite", "--compare", "a.png"], "no TFLite flatbuffer"),
    ],
)
def test_benchmark_says_what_is_wrong(arguments, message, files, capsys):
    assert benchmark.main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--runs", "0"], ["--warm-up", "-1"], ["--threads", "1,1"], ["--threads", "a"]])
def test_benchmark_refuses_options(option, files, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["model.tflite", *option])
    assert option[0] in capsys.readouterr().err


def test_interpreters_profile_only_when_asked(quantizer):
    image = np.zeros((1, 8, 8, 40))
    silent, profiled = Interpreter(quantizer), Interpreter(quantizer, profile=True)
    for interpreter in silent, profiled:
        interpreter.predict(np.concatenate([image] * 4))
    assert silent.profile() == []
    assert [(entry.op, entry.calls) for entry in profiled.profile()] == [("LceQuantize", 4)]


def test_modules_and_entry_points_run(files):
    for module in "run", "benchmark":
        command = [sys.executable, "-m", f"binaryvit_runtime.{module}", "--help"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and f"usage: binaryvit-{module}" in done.stdout, done.stderr
    distribution = importlib.metadata.distribution("binaryvit-runtime")
    commands = {entry.name: entry.load() for entry in distribution.entry_points if entry.group == "console_scripts"}
    assert commands == {"binaryvit-run": run.main, "binaryvit-benchmark": benchmark.main}
