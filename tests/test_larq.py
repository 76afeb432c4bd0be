"""docs/larq.md: its tables name everything of Larq, and its QuickNet computes what Larq's does."""

import json
import operator
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from larq_recording import run_python
from requirements import needs_interpreter, needs_larq

import keras_binaryvit as kb

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "larq.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.*`lq\..*) \| (.*) \|$", PAGE, re.MULTILINE)
NAMES = (TESTS / "larq_names.txt").read_text().split()


@pytest.fixture(scope="module")
def larq(tmp_path_factory):
    """A folder with Larq's names, a QuickNet's weights and logits."""
    folder = tmp_path_factory.mktemp("larq")
    run_python(TESTS / "larq_quicknet.py", folder)
    return folder


def test_every_name_has_a_row():
    assert sorted(name for names, _ in ROWS for name in re.findall(r"`(lq\.[\w.]+)`", names)) == sorted(NAMES)


@pytest.mark.parametrize(
    "counterpart", sorted({c for _, here in ROWS for c in re.findall(r"\b(?:kb|keras)\.[\w.]+", here)})
)
def test_every_counterpart_exists(counterpart):
    package, _, path = counterpart.partition(".")
    operator.attrgetter(path)({"kb": kb, "keras": keras}[package])


@pytest.mark.parametrize("alias", sorted({alias for _, here in ROWS for alias in re.findall(r'`"(\w+)"`', here)}))
def test_every_alias_is_known(alias):
    assert callable(kb.constraints.get(alias) if alias == "weight_clip" else kb.quantizers.get(alias))


@needs_larq
def test_the_names_are_those_of_larq(larq):
    assert json.loads((larq / "names.json").read_text()) == NAMES


@needs_larq
@needs_interpreter
def test_quicknet_is_bit_identical_in_the_interpreter(larq, monkeypatch):
    monkeypatch.chdir(larq)
    page = {"__name__": "docs"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "larq.md", "exec"), page)
    assert [row.binary for row in kb.deploy.binary_table(page["model"])] == [True, True]
    images, expected = page["recorded"]["images"], page["recorded"]["logits"]
    logits = kb.deploy.run(page["flatbuffer"], images)
    frozen = keras.ops.convert_to_numpy(kb.deploy.freeze(page["model"])(images, training=False))
    np.testing.assert_array_equal(logits, frozen)
    # Larq's batch normalization multiplies with `rsqrt`, which some processors approximate.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 * np.abs(expected).max())

    page["model"].load_weights(larq / "whole.h5")
    np.testing.assert_array_equal(page["model"].predict(images, verbose=0), page["logits"])
