"""What some tests need and not every installation has: one condition and one reason each, which `make test` counts."""

import importlib.util

import pytest


def _installed(*modules):
    return all(importlib.util.find_spec(module) for module in modules)


needs_larq = pytest.mark.skipif(not _installed("larq", "tf_keras"), reason="Larq isn't installed")
HAS_LCE = _installed("larq_compute_engine")
needs_lce = pytest.mark.skipif(not HAS_LCE, reason="the Larq Compute Engine isn't installed")
# Which of the two runs a file depends on NumPy too: see `deploy.interpreters`.
needs_interpreter = pytest.mark.skipif(
    not HAS_LCE and not _installed("binaryvit_runtime"), reason="neither LCE nor binaryvit-runtime is installed"
)
needs_runtime = pytest.mark.skipif(not _installed("binaryvit_runtime"), reason="binaryvit-runtime isn't installed")
