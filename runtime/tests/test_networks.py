"""Whole networks, as LCE's converter wrote them, against recordings of LCE's interpreter: see record_golden.py."""

from pathlib import Path

import numpy as np
import pytest
from binaryvit_runtime import Interpreter

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_networks_give_what_lce_gives(name, num_threads, kernels):
    recording = np.load(GOLDEN / f"{name}.npz")
    actual = Interpreter(GOLDEN / f"{name}.tflite", num_threads).predict(recording["images"])
    expected = recording["outputs"]
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())
