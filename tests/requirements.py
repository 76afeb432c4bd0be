"""What some tests need and not every installation has: one condition and one reason each, which `make test` counts."""

import importlib.util

import pytest


def _installed(*modules):
    return all(importlib.util.find_spec(module) for module in modules)


needs_larq = pytest.mark.skipif(not _installed("larq", "tf_keras"), reason="Larq isn't installed")
needs_lce = pytest.mark.skipif(not _installed("larq_compute_engine"), reason="the Larq Compute Engine isn't installed")
