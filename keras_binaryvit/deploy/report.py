"""report: one HTML page on a model and its flatbuffer: size, agreement, latency, operators and layers."""

import functools
import html
import importlib
import importlib.metadata
import math
import os
import platform
import re
import string
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_binaryvit.deploy import flatbuffer as flatbuffers
from keras_binaryvit.deploy import interpreters
from keras_binaryvit.deploy.binary import binary_table
from keras_binaryvit.deploy.inspect import Cost, Inspection, inspect, printable
from keras_binaryvit.deploy.interpreters import Inputs, prepared, random_inputs
from keras_binaryvit.deploy.verify import Verification, structured
from keras_binaryvit.layers.quantized import QuantizedKernel

_LONGEST = 10.0
"""Seconds after which a latency is no longer measured, however few the runs."""


def report(
    model: keras.Model,
    flatbuffer: bytes,
    images: Inputs | None = None,
    verification: Verification | None = None,
    title: str | None = None,
    runs: int = 30,
    threads: Sequence[int] = (1,),
) -> str:
    """Returns a self-contained HTML page about `flatbuffer`; it loads nothing and runs no script.

    The latency is measured here and now, with LCE's interpreter and with the runtime, those that are installed.

    Args:
        model: The Keras model that `flatbuffer` was made of.
        flatbuffer: What `convert` made of it.
        images: `(batch, height, width, channels)`, for several inputs as in `run`; some are run through `model` to
            see how many of its binary layers' inputs are +1, and the first is what the latency is measured with. `None`
            leaves the former out.
        verification: What `verify` found.
        title: Such as the file's name; the model's name if `None`.
        runs: How many times the latency is measured; fewer where they would take longer than 10 s.
        threads: Numbers of threads that the latency is measured with.

    Raises:
        ValueError: The bytes are no TFLite flatbuffer or damaged, `runs` isn't positive, or the logits are of different
            shapes.
    """
    if runs < 1:
        raise ValueError(f"runs must be positive. Received: runs={runs}")
    inspection = inspect(flatbuffer)
    content = flatbuffers.read(flatbuffer)
    inputs = random_inputs(content) if images is None else prepared(content, images)
    shares = {} if images is None else input_shares(model, [array[:16] for array in inputs])
    batch = [array[: tensor.shape[0]] for array, tensor in zip(inputs, content.inputs, strict=True)]
    latencies = [row for count in threads for row in _latencies(flatbuffer, batch, count, runs)]
    title = title or model.name
    page = string.Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=_text(title),
        tiles=_tiles(model, inspection, verification, latencies),
        facts=_facts(model, inspection),
        size=_size(model, inspection),
        agreement=_agreement(verification),
        latency=_latency_table(latencies),
        operators=_operator_table(inspection),
        layers=_float_table(model) + _layer_table(inspection, shares),
    )


# ---- measurements


def input_shares(model: keras.Model, inputs: list[np.ndarray]) -> dict[str, float]:
    """Returns the share of +1 among the quantized inputs of each binary layer of `model`, by the layer's path."""
    candidates = [layer for layer in model._flatten_layers() if isinstance(layer, QuantizedKernel)]
    layers = {layer: layer.input_quantizer for layer in candidates if layer.is_binary}
    values: dict[str, list[float]] = {}

    def recording(path, quantizer):
        def record(inputs):
            outputs = quantizer(inputs)
            values.setdefault(path, []).append(float(keras.ops.mean(keras.ops.cast(outputs > 0, "float32"))))
            return outputs

        record.precision = 1  # type: ignore[attr-defined]  # a function has no `precision`, and a binary layer asks for it
        return record

    try:
        for layer, quantizer in layers.items():
            layer.input_quantizer = recording(layer.path, quantizer)
        model(structured(model, inputs), training=False)
    finally:
        for layer, quantizer in layers.items():
            layer.input_quantizer = quantizer
    return {path: float(np.mean(shares)) for path, shares in values.items()}


def _latencies(flatbuffer: bytes, batch: list[np.ndarray], threads: int, runs: int) -> list[tuple[str, int, object]]:
    """Returns `(interpreter, threads, milliseconds of each run, or why there are none)` for each that is installed."""
    rows: list[tuple[str, int, object]] = []
    kinds = {
        "Larq Compute Engine": interpreters.lce_interpreter,
        "binaryvit-runtime": interpreters.runtime_interpreter,
    }
    for name, create in kinds.items():
        try:
            interpreter = create(flatbuffer, threads)
            rows.append((name, threads, _time(functools.partial(interpreters.outputs_of, interpreter, batch), runs)))
        except ImportError:
            continue
        except (RuntimeError, ValueError):  # such as one that lacks an operator
            rows.append((name, threads, "can't run this file"))
    return rows


def _time(run: Callable, runs: int) -> np.ndarray:
    for _ in range(3):
        run()
    times: list[float] = []
    # An interpreter with more threads than there are free cores can take seconds for what else takes milliseconds.
    while len(times) < runs and sum(times) < _LONGEST:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * np.array(times)


# ---- sections


def _tiles(model: keras.Model, inspection: Inspection, verification: Verification | None, latencies: list) -> str:
    float_bytes = 4 * model.count_params()
    total = inspection.total
    products = total.binary_multiply_adds + total.float_multiply_adds
    smaller = float_bytes / max(inspection.file_bytes, 1)
    tiles = [
        (_bytes(inspection.file_bytes), f"{smaller:.1f} times smaller than float32"),
        (_si(products), f"multiply-adds, {total.binary_multiply_adds / max(products, 1):.1%} of them binary"),
        (_bytes(total.bytes_moved), f"moved between {total.operators:,} operators"),
    ]
    if verification is not None:
        tiles.append((f"{verification.agreement:.2%}", f"agreement on {verification.num_images:,} images"))
    measured = [(np.median(times), name, count) for name, count, times in latencies if isinstance(times, np.ndarray)]
    if measured:
        median, name, count = min(measured)
        tiles.append((f"{median:.1f} ms", f"an image, {name}, {_plural(count, 'thread')}"))
    return "".join(f"<li><strong>{_text(value)}</strong>{_text(what)}</li>" for value, what in tiles)


def _facts(model: keras.Model, inspection: Inspection) -> str:
    versions = [f"{name} {_version(name)}" for name in ("keras-binaryvit", "keras", "larq-compute-engine")]
    facts = [
        ("Model", f"{model.name}, {model.count_params():,} parameters"),
        ("Input", ", ".join(map(_shape, inspection.input_shapes))),
        ("Output", ", ".join(map(_shape, inspection.output_shapes))),
        ("File", f"{inspection.file_bytes:,} bytes, {inspection.total.operators:,} operators"),
        ("Made with", ", ".join(versions)),
        ("Measured on", f"{_processor()}, {_plural(os.cpu_count() or 1, 'processor')}, {platform.system()}"),
    ]
    return _table(["", ""], facts, kind="facts")


def _size(model: keras.Model, inspection: Inspection) -> str:
    float_bytes = 4 * model.count_params()
    rest = inspection.file_bytes - sum(inspection.constant_bytes.values())
    rows = [
        ("All parameters in float32", float_bytes),
        ("This file", inspection.file_bytes),
        *((f"of it constants, {name}", size) for name, size in inspection.constant_bytes.items()),
        ("of it the graph", rest),
    ]
    largest = max(size for _, size in rows)
    return _table(
        ["", "bytes", "of float32"],
        [[name, (f"{size:,}", size / max(largest, 1)), f"{size / max(float_bytes, 1):.1%}"] for name, size in rows],
    )


def _agreement(verification: Verification | None) -> str:
    if verification is None:
        return "<p>This file was written without a check.</p>"
    accuracies = [("the model", verification.model_accuracy), ("this file", verification.flatbuffer_accuracy)]
    rows = [
        ["Images", f"{verification.num_images:,}"],
        ["Same top-1 class", f"{verification.agreement:.2%}"],
        ["Largest difference of a logit, relative to the largest logit", f"{verification.largest_difference:.1e}"],
        ["Mean difference, relative to the same", f"{verification.mean_difference:.1e}"],
        *([f"Accuracy of {what}", f"{accuracy:.2%}"] for what, accuracy in accuracies if accuracy is not None),
    ]
    logits = (np.asarray(x, float) for x in (verification.model_logits, verification.flatbuffer_logits))
    return _table(["", ""], rows, kind="facts") + _scatter(*logits)


def _latency_table(latencies: list) -> str:
    if not latencies:
        return "<p>Neither the Larq Compute Engine nor binaryvit-runtime is installed here.</p>"
    rows = []
    for name, count, times in latencies:
        figures = ["", times, "", ""]
        if isinstance(times, np.ndarray):
            figures = [f"{len(times)}", *(f"{np.percentile(times, percent):.2f}" for percent in (50, 10, 90))]
        rows.append([name, f"{count}", *figures])
    note = "<p>Milliseconds for a batch of the file's size, after three to warm up.</p>"
    return note + _table(["interpreter", "threads", "runs", "median", "10th percentile", "90th percentile"], rows)


def _operator_table(inspection: Inspection) -> str:
    total = inspection.total
    rows = [[name, *_cost_cells(cost, total)] for name, cost in inspection.by_name().items()]
    return _table(["operator", *_COST_HEADS], rows, [["total", *_cost_cells(total, total)]])


def _float_table(model: keras.Model) -> str:
    rows = [[row.name, row.reason, row.remedy] for row in binary_table(model) if not row.binary]
    if not rows:
        return ""
    heads = ["layer with quantizers that is float32 in this file", "because", "to change it"]
    return _table(heads, rows, kind="facts")


def _layer_table(inspection: Inspection, shares: dict[str, float]) -> str:
    total = inspection.total

    def row(title, origin, cost):
        return [title, *_cost_cells(cost, total), *_share_cells(origin, cost, shares)]

    rows, layers = [], inspection.by_origin()
    for group, cost in inspection.by_origin(depth=1).items():
        inside = [
            row(f"/{name.partition('/')[2]}", name, part)
            for name, part in layers.items()
            if name.split("/")[0] == group
        ]
        rows += [row(group or "-", group, cost), *(inside if len(inside) > 1 else [])]
    return _table(["layer", *_COST_HEADS, "+1 in kernels", "+1 in inputs"], rows, [row("total", "", total)])


_COST_HEADS = ["ops", "bytes moved", "constants", "binary multiply-adds", "float multiply-adds"]


def _cost_cells(cost: Cost, total: Cost) -> list:
    def bar(write, name):
        return write(getattr(cost, name)), getattr(cost, name) / max(getattr(total, name), 1)

    products = [bar(_si, "binary_multiply_adds"), bar(_si, "float_multiply_adds")]
    return [f"{cost.operators:,}", bar(_bytes, "bytes_moved"), _bytes(cost.constant_bytes), *products]


def _share_cells(origin: str, cost: Cost, shares: dict[str, float]) -> list[str]:
    kernel = f"{cost.kernel_plus_ones / cost.kernel_values:.1%}" if cost.kernel_values else ""
    inputs = [share for path, share in shares.items() if not origin or f"{path}/".startswith(f"{origin}/")]
    return [kernel, f"{np.mean(inputs):.1%}" if inputs and cost.kernel_values else ""]


# ---- plot


def _scatter(expected: np.ndarray, actual: np.ndarray) -> str:
    """Returns an SVG of all logits, those of images with another top-1 class on top and in another color."""
    if expected.shape != actual.shape or expected.ndim != 2:
        raise ValueError(f"Both logits must be (images, classes). Received: shapes {expected.shape} and {actual.shape}")
    finite = np.isfinite(expected) & np.isfinite(actual)
    values = np.concatenate([expected[finite], actual[finite], [0.0]])
    low, high = float(values.min()), float(values.max()) or 1.0
    margin = 0.03 * (high - low)
    low, high = low - margin, high + margin
    left, top, side = 64, 12, 400

    def place(x):
        return (x - low) / (high - low) * side

    def dots(rows):
        mask = finite & rows[:, None]
        # Positions on a grid of half a pixel, each once: the page stays small however many logits there are.
        points = np.stack([left + place(expected[mask]), top + side - place(actual[mask])], -1)
        return "".join(f"M{x:g} {y:g}h0" for x, y in np.unique(np.round(2 * points) / 2, axis=0))

    differ = expected.argmax(-1) != actual.argmax(-1)
    grid = "".join(
        f'<path class="grid" d="M{left + place(tick):.1f} {top}v{side}M{left} {top + side - place(tick):.1f}h{side}"/>'
        f'<text x="{left + place(tick):.1f}" y="{top + side + 18}" text-anchor="middle">{tick:g}</text>'
        f'<text x="{left - 8}" y="{top + side - place(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in _ticks(low, high)
    )
    return f"""
<figure>
<svg id="logits" role="img" aria-label="Logits" viewBox="0 0 {left + side + 12} {top + side + 48}">
{grid}
<path class="grid diagonal" d="M{left} {top + side}L{left + side} {top}"/>
<path class="dots" d="{dots(~differ)}"/>
<path class="dots differ" d="{dots(differ)}"/>
<text x="{left + side / 2}" y="{top + side + 40}" text-anchor="middle">logit of the Keras model</text>
<text transform="translate(16 {top + side / 2}) rotate(-90)" text-anchor="middle">logit of this file</text>
</svg>
<figcaption>{expected.size:,} logits of {_plural(len(expected), "image")}; equal ones lie on the diagonal.
Images with another top-1 class{" (red)" if differ.any() else ""}: {differ.sum()}.</figcaption>
</figure>"""


def _ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers between `low` and `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


# ---- text


def _table(heads: list[str], rows: Iterable[Sequence], foot: Iterable[Sequence] = (), kind: str = "") -> str:
    """Returns a table; a cell is a text, or a text and the share of a bar behind it."""
    head = f"<thead><tr>{''.join(f'<th>{_text(name)}</th>' for name in heads)}</tr></thead>" if any(heads) else ""
    body, end = ("".join(map(_row, part)) for part in (rows, foot))
    parts = f"{head}<tbody>{body}</tbody>{f'<tfoot>{end}</tfoot>' if end else ''}"
    return f'<div class="scroll"><table class="{kind}">{parts}</table></div>'


def _row(cells: Sequence) -> str:
    inner = ' class="inner"' if str(cells[0]).startswith("/") else ""
    return f"<tr{inner}>{''.join(map(_cell, cells))}</tr>"


def _cell(cell: Any) -> str:
    if isinstance(cell, tuple):
        text, share = cell
        return f'<td class="bar" style="--share:{100 * share:.1f}%">{_text(text)}</td>'
    return f"<td>{_text(cell)}</td>"


def _text(text: str) -> str:
    return html.escape(printable(text))


def _shape(shape: tuple[int, ...]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape)) or "scalar"


def _si(value: int) -> str:
    """Returns `value` with three digits and a letter for the thousands: 3.56 G."""
    for power, letter in [(4, "T"), (3, "G"), (2, "M"), (1, "k")]:
        if value >= 999.5 * 1000 ** (power - 1):
            return f"{value / 1000**power:#.3g}".rstrip(".") + f" {letter}"
    return f"{value:,}" if value else ""


def _bytes(value: int) -> str:
    text = _si(value)
    return text and text + ("B" if text[-1].isalpha() else " B")


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)", file.read_text(encoding="utf-8") if file.exists() else "", re.M)
    return name[1] if name else platform.processor() or platform.machine()
