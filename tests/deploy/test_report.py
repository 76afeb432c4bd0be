import dataclasses
import html.parser
import re
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from requirements import needs_interpreter
from test_flatbuffer import build
from test_inspect import options

import keras_binaryvit as kb
from keras_binaryvit.deploy.interpreters import has_lce
from keras_binaryvit.deploy.report import _bytes, _si, _ticks, input_shares, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

VERIFICATION = kb.deploy.Verification(
    num_images=200,
    agreement=0.995,
    largest_difference=1.3e-3,
    mean_difference=2e-7,
    model_accuracy=0.875,
    flatbuffer_accuracy=0.87,
    first_difference=None,
    model_logits=np.zeros((200, 3)),
    flatbuffer_logits=np.zeros((200, 3)),
)


def checked(expected, actual):
    """What was verified, with these logits."""
    return dataclasses.replace(VERIFICATION, model_logits=expected, flatbuffer_logits=actual)


class Page(html.parser.HTMLParser):
    """The tables of a page as lists of rows, by the section's id; its elements and its text."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.elements, self.text, self._section, self._in_cell = {}, [], "", None, False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "section":
            self._section = self.tables.setdefault(dict(attributes)["id"], [])
        elif tag == "tr":
            self._section.append([])
        elif tag in ("td", "th"):
            self._section[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._in_cell:
            self._section[-1][-1] += data


@pytest.fixture
def model():
    """8 inputs -> 32 -> a binary layer of 3, its kernel +1 in 40 of 96 places."""
    inputs = keras.Input((1, 1, 8))
    x = keras.layers.Dense(32, name="stem")(inputs)
    quantized = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "use_bias": False}
    outputs = kb.layers.QuantDense(3, name="binary", **quantized)(x)
    model = keras.Model(inputs, outputs, name="mine")
    kernel = np.where(np.arange(96) < 40, 0.5, -0.5).reshape(32, 3)
    model.get_layer("binary").kernel.assign(kernel)
    return model


@pytest.fixture
def flatbuffer():
    """What converting that model gives, written by hand."""
    signs = np.where(np.arange(96) < 40, 0, 1).reshape(32, 3)  # a set bit is a -1
    words = np.array([sum(int(bit) << i for i, bit in enumerate(signs[:, unit])) for unit in range(3)], "uint32")
    tensors = [
        ("x", (1, 1, 1, 8), "float32", None),
        ("kernel", (32, 8), "float32", np.zeros((32, 8), "float32")),
        ("mine_1/stem_1/MatMul", (1, 1, 1, 32), "float32", None),
        ("mine_1/binary_1/sign", (1, 1, 1, 1), "int32", None),
        ("packed", (3, 1, 1, 1), "int32", words),
        ("mine_1/binary_1/Conv2D", (1, 1, 1, 3), "float32", None),
    ]
    operators = [
        ("FULLY_CONNECTED", (0, 1, -1), (2,), None),
        ("LceQuantize", (2,), (3,), None),
        ("LceBconv2d", (3, 4, -1, -1, -1), (5,), options(32)),
    ]
    return build(tensors, operators)


@pytest.fixture
def interpreters(monkeypatch):
    """Stand-ins for both interpreters, so that no test waits for a measurement or depends on one."""
    calls = []

    def interpreter(name):
        def create(flatbuffer, num_threads, **options):
            calls.append((name, num_threads, options))
            return types.SimpleNamespace(predict=lambda batch: calls.append((name, batch[0].shape)) or [])

        return create

    lce = types.SimpleNamespace(testing=types.SimpleNamespace(Interpreter=interpreter("lce")))
    monkeypatch.setitem(sys.modules, "larq_compute_engine", lce)
    monkeypatch.setattr("keras_binaryvit.deploy.interpreters.has_lce", lambda: True)
    monkeypatch.setitem(sys.modules, "binaryvit_runtime", types.SimpleNamespace(Interpreter=interpreter("runtime")))
    return calls


LOGITS = np.random.default_rng(0).normal(size=(200, 3))
IMAGES = np.random.default_rng(1).normal(size=(200, 1, 1, 8)).astype("float32")


def test_tables(model, flatbuffer, interpreters):
    model.get_layer("stem").bias.assign(np.where(np.arange(32) < 24, 100.0, -100.0))
    page = Page(report(model, flatbuffer, IMAGES, checked(LOGITS, LOGITS), title="mine.tflite", runs=4))
    float_bytes = 4 * (8 * 32 + 32 + 96)

    assert ["Model", "mine, 384 parameters"] in page.tables["facts"]
    assert ["Input", " \N{MULTIPLICATION SIGN} ".join("1118")] in page.tables["facts"]
    size = page.tables["size"]
    assert ["All parameters in float32", f"{float_bytes:,}", "100.0%"] in size
    assert ["This file", f"{len(flatbuffer):,}", f"{len(flatbuffer) / float_bytes:.1%}"] in size
    assert ["of it constants, int32, bit-packed", "12", "0.8%"] in size
    assert sum(int(row[1].replace(",", "")) for row in size if row[0].startswith("of it")) == len(flatbuffer)

    agreement = dict(page.tables["agreement"])
    assert list(agreement.values()) == ["200", "99.50%", "1.3e-03", "2.0e-07", "87.50%", "87.00%"]

    operators = {row[0]: row[1:] for row in page.tables["operators"]}
    assert operators["FULLY_CONNECTED"] == ["1", "160 B", "1.02 kB", "", "256"]
    assert operators["LceBconv2d"] == ["1", "16 B", "12 B", "96", ""]
    assert operators["total"] == ["3", "308 B", "1.04 kB", "96", "256"]

    layers = {row[0]: row[1:] for row in page.tables["layers"]}
    assert list(layers) == ["layer", "stem", "binary", "total"]
    assert layers["binary"] == ["2", "148 B", "12 B", "96", "", "41.7%", "75.0%"]
    assert layers["stem"] == ["1", "160 B", "1.02 kB", "", "256", "", ""]

    (tiles,) = re.findall(r"mine\.tflite(\d.*?)Model and file", page.text.replace("\n", ""))
    assert "352multiply-adds, 27.3% of them binary" in tiles and "99.50%agreement on 200 images" in tiles


def test_layers_within_layers(model, interpreters):
    names = ["m_1/block_0_1/query_1/x", "m_1/block_0_1/add", "m_1/head_1/x"]
    tensors = [("x", (1,), "float32", None), *((name, (1,), "float32", None) for name in names)]
    flatbuffer = build(tensors, [("ABS", (0,), (i + 1,), None) for i in range(3)])
    rows = [(row[0], row[1]) for row in Page(report(model, flatbuffer)).tables["layers"]]
    assert rows[1:] == [("block_0", "2"), ("/query", "1"), ("/", "1"), ("head", "1"), ("total", "3")]


def test_latency(model, flatbuffer, interpreters):
    page = Page(report(model, flatbuffer, runs=4, threads=(1, 3)))
    rows = page.tables["latency"][1:]
    names = ["Larq Compute Engine", "binaryvit-runtime"]
    assert [row[:3] for row in rows] == [[name, count, "4"] for count in "13" for name in names]
    for row in rows:
        tenth, median, ninetieth = float(row[4]), float(row[3]), float(row[5])
        assert 0 <= tenth <= median <= ninetieth
    assert interpreters[0] == ("lce", 1, {"use_indirect_bgemm": True, "use_xnnpack": True})
    assert interpreters.count(("lce", (1, 1, 1, 8))) == 2 * (3 + 4)


def test_a_slow_interpreter_is_not_waited_for(model, flatbuffer, interpreters, monkeypatch):
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    rows = Page(report(model, flatbuffer, runs=1000)).tables["latency"][1:]
    assert [row[2:4] for row in rows] == [["2", "6000.00"]] * 2


def test_interpreters_that_are_missing_or_fail(model, flatbuffer, interpreters, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("unresolved custom op")

    monkeypatch.setitem(sys.modules, "binaryvit_runtime", types.SimpleNamespace(Interpreter=fails))
    monkeypatch.setitem(sys.modules, "larq_compute_engine", None)
    rows = Page(report(model, flatbuffer)).tables["latency"][1:]
    assert rows == [["binaryvit-runtime", "1", "", "can't run this file", "", ""]]
    monkeypatch.setitem(sys.modules, "binaryvit_runtime", None)
    page = Page(report(model, flatbuffer))
    assert not page.tables["latency"]
    assert "Neither the Larq Compute Engine nor binaryvit-runtime is installed" in page.text


def test_without_a_check(model, flatbuffer, interpreters):
    page = Page(report(model, flatbuffer))
    assert "written without a check" in page.text
    assert "svg" not in dict(page.elements)
    assert [row[-1] for row in page.tables["layers"][1:]] == [""] * 3


def test_wrong_arguments(model, flatbuffer, interpreters):
    with pytest.raises(ValueError, match="runs=0"):
        report(model, flatbuffer, runs=0)
    with pytest.raises(ValueError, match=r"\(200, 3\).*\(200, 2\)"):
        report(model, flatbuffer, verification=checked(LOGITS, LOGITS[:, :2]))
    with pytest.raises(ValueError, match="no TFLite flatbuffer"):
        report(model, b"none")


def test_names_cannot_inject_html(model, interpreters):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    tensors = [("x", (1,), "float32", None), (f"m/{evil}/y", (1,), "float32", None)]
    page = Page(report(model, build(tensors, [(evil, (0,), (1,), None)]), title=evil))
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.elements)
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert page.tables["operators"][1][0] == evil


def test_the_page_refers_to_nothing_outside_it(model, flatbuffer, interpreters):
    text = report(model, flatbuffer, IMAGES, checked(LOGITS, LOGITS))
    assert not re.search(r"https?:|//|url\(|@import", text)
    assert not any({"src", "href"} & set(attributes) for _, attributes in Page(text).elements)


# ---- plot


def dots(page):
    paths = {a["class"]: a["d"] for tag, a in Page(page).elements if tag == "path" and "dots" in a.get("class", "")}
    return [
        np.array([point.split() for point in re.findall(r"M(.*?)h0", paths[name])], float).reshape(-1, 2)
        for name in ("dots", "dots differ")
    ]


def test_dots_lie_where_the_logits_are(model, flatbuffer, interpreters):
    expected = np.array([[-1.0, 0.0, 3.0], [1.0, 2.0, 0.0]])
    actual = np.array([[-1.0, 0.0, 3.0], [2.0, 1.0, 0.0]])  # the second image changes its class
    same, differ = dots(report(model, flatbuffer, verification=checked(expected, actual)))
    slope = (same[-1] - same[0]) / 4  # from -1 to 3
    assert slope[0] == pytest.approx(-slope[1], abs=0.5) and slope[0] > 50
    np.testing.assert_allclose(same, same[0] + slope * [[0], [1], [4]], atol=0.5)
    np.testing.assert_allclose(
        differ, same[0] + [[slope[0], slope[1]], [2 * slope[0], 3 * slope[1]], [3 * slope[0], 2 * slope[1]]], atol=0.75
    )


def test_the_plot_of_many_logits_stays_small(model, flatbuffer, interpreters):
    expected = np.random.default_rng(0).normal(size=(2000, 1000))
    page = report(model, flatbuffer, verification=checked(expected, expected * (1 + 1e-4)))
    assert len(page) < 200_000
    assert "2,000,000 logits of 2,000 images" in page


@pytest.mark.parametrize("value", [0.0, 1e-30, -7.5, 1e30, np.nan])
def test_plots_of_one_value(model, flatbuffer, interpreters, value):
    logits = np.full((1, 3), value)
    page = report(model, flatbuffer, verification=checked(logits, logits))
    same, differ = dots(page)
    assert len(same) == np.isfinite(value) and not len(differ)
    assert "nan" not in page[page.index("<svg") : page.index("</svg>")]


def test_ticks_are_round():
    assert _ticks(-1.1, 1.1) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert _ticks(0, 4321) == [0, 1000, 2000, 3000, 4000]
    assert _ticks(0.0003, 0.00051) == [0.0003, 0.00035, 0.0004, 0.00045, 0.0005]


def test_amounts():
    values = [0, 999, 1000, 12_345, 999_499, 999_500, 3_556_675_584, 5 * 10**14]
    assert [_si(value) for value in values] == ["", "999", "1.00 k", "12.3 k", "999 k", "1.00 M", "3.56 G", "500 T"]
    assert [_bytes(value) for value in (0, 5, 1000, 7_060_928)] == ["", "5 B", "1.00 kB", "7.06 MB"]


# ---- measurements


def test_shares_of_inputs(model):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 1, 1, 8)).astype("float32")
    before = model.predict(images, verbose=0)
    hidden = keras.Model(model.inputs, model.get_layer("stem").output).predict(images, verbose=0)
    layer = model.get_layer("binary")
    quantizer = layer.input_quantizer
    shares = input_shares(model, [images])
    assert shares == {layer.path: pytest.approx(np.mean(hidden >= 0))}
    assert layer.input_quantizer is quantizer
    np.testing.assert_array_equal(model.predict(images, verbose=0), before)


@needs_interpreter
def test_of_a_converted_model(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("conversion needs the TensorFlow backend")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(32, 3, name="stem")(inputs)
    quantized = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "use_bias": False}
    x = kb.layers.QuantConv2D(5, 6, name="binary", **quantized)(x)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    flatbuffer = kb.deploy.convert(model)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    page = Page(report(model, flatbuffer, images, kb.deploy.verify(model, flatbuffer, images), runs=2))
    expected = "Larq Compute Engine" if has_lce() else "binaryvit-runtime"
    assert [row[0] for row in page.tables["latency"]][:2] == ["interpreter", expected]
    (binary,) = [row for row in page.tables["layers"] if row[0] == "binary"]
    assert binary[4] == _si(5 * 6 * 6 * 32)
    assert all(re.fullmatch(r"\d+\.\d%", cell) for cell in binary[6:])


# ---- in a browser


def render(path, tmp_path):
    """Returns the DOM that Chromium makes of a page, what its console says, and the screenshot."""
    screenshot = tmp_path / "screenshot.png"
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars",
            "--enable-logging=stderr", "--window-size=1100,1600", f"--screenshot={screenshot}", "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, console, screenshot.read_bytes()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed")
def test_renders_in_a_browser(model, flatbuffer, interpreters, tmp_path):
    path = tmp_path / "report.html"
    text = report(model, flatbuffer, IMAGES, checked(LOGITS, LOGITS[::-1]), title="mine.tflite")
    path.write_text(text, encoding="utf-8")
    dom, console, screenshot = render(path, tmp_path)
    assert console == []
    page, written = Page(dom), Page(text)
    assert page.tables == written.tables and all(page.tables.values())
    assert len(dots(dom)[1]) > 100
    assert screenshot.startswith(b"\x89PNG") and len(screenshot) > 20_000

    # The page's own policy stops whatever would be loaded, and the console says so: that it is empty means something.
    path.write_text(text.replace("<h1>", '<img src="http://example.invalid/x.png"><h1>'), encoding="utf-8")
    assert "Content Security Policy" in render(path, tmp_path)[1][0]
