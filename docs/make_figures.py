"""Draws the pictures of docs/quantizers.md: `python docs/make_figures.py`."""

from pathlib import Path

from keras_binaryvit import quantizers, visualize

# The two that look at a unit's mean magnitude see x = -1.5 ... 1.5 as a unit: it is 0.75 then.
FIGURES = {
    "ste_sign": ("ste_sign", None),
    "approx_sign": ("approx_sign", None),
    "swish_sign": ("swish_sign", None),
    "ste_heaviside": ("ste_heaviside", None),
    "ste_tern": (quantizers.SteTern(0.5), None),
    "magnitude_aware_sign": ("magnitude_aware_sign", (-1.5, 1.5)),
    "scaled_sign": ("scaled_sign", (-1.5, 1.5)),
    "dorefa": ("dorefa_quantizer", None),
    "elastic_binarizer": (quantizers.ElasticBinarizer(0.005), None),
}


def main() -> None:
    """Writes one PNG for each quantiser, beside this file."""
    for name, (quantizer, limits) in FIGURES.items():
        figure = visualize.quantizer(quantizer, limits)
        figure.savefig(Path(__file__).with_name(f"quantizer_{name}.png"), dpi=70)


if __name__ == "__main__":
    main()
