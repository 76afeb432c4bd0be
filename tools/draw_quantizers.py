"""Draws the plots of docs/quantizers.md, SVG that reads on light and dark pages: `python tools/draw_quantizers.py`."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from keras_binaryvit import quantizers, visualize

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "quantizers"
# By file: what is drawn in one plot, by label. A quantizer that looks at a whole unit sees the range as one.
PLOTS: dict[str, dict[str, tuple[Any, tuple[float, float] | None]]] = {
    "signs": {
        "SteSign": ("ste_sign", (-1.5, 1.5)),
        "ApproxSign": ("approx_sign", (-1.5, 1.5)),
        "SwishSign": ("swish_sign", (-1.5, 1.5)),
    },
    "scaled_signs": {
        "MagnitudeAwareSign": ("magnitude_aware_sign", (-1.5, 1.5)),
        "ScaledSign": ("scaled_sign", (-1.5, 1.5)),
    },
    "ste_heaviside": {"SteHeaviside": ("ste_heaviside", None)},
    "ste_tern": {"SteTern": (quantizers.SteTern(0.5), None)},
    "dorefa": {"DoReFa": ("dorefa_quantizer", None)},
    "elastic_binarizer": {"ElasticBinarizer": (quantizers.ElasticBinarizer(0.005), None)},
}
# Tones of medium lightness stand out from white and from black.
GRAY = "#808080"
STYLES = (("#2e8bd0", "-"), ("#e0702f", "--"), ("#2fa05f", "-."))


def plot(curves: dict) -> Figure:
    """Returns a figure with the functions and the gradients of `curves`, a quantizer and a range of x by label."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplots(1, 2)
    for (label, (quantizer, limits)), (color, line) in zip(curves.items(), STYLES, strict=False):
        for panel, drawn in zip(panels, visualize.quantizer(quantizer, limits).axes, strict=True):
            x, y = drawn.lines[0].get_data()
            panel.plot(x, y, line, color=color, linewidth=1.8, label=label)
            panel.set_title(drawn.get_title(), color=GRAY)
    for panel in panels:
        panel.patch.set_alpha(0)
        panel.set_xlabel("x", color=GRAY)
        panel.tick_params(colors=GRAY)
        panel.grid(alpha=0.25, color=GRAY)
        panel.spines[:].set_color(GRAY)
    if len(curves) > 1:
        panels[1].legend(frameon=False, labelcolor=GRAY, fontsize=8)
    return figure


def main() -> None:
    """Writes one file for each plot."""
    # Letters stay text, in the reader's font; names inside don't change from run to run.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "quantizers", "font.family": "sans-serif"}
    for name, curves in PLOTS.items():
        plot(curves).savefig(FOLDER / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
