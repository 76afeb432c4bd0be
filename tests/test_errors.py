"""docs/errors.md says what the code says."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from requirements import needs_larq

ROOT = Path(__file__).resolve().parents[1]
NEEDS_TORCH = "pickle that would run a command"


def messages(text):
    """Returns the messages by title, without what is counted from the start of a process, and digests."""
    text = re.sub(r"\b[0-9a-f]{64}\b", "SHA-256", re.sub(r"_\d+\b", "", text))
    found = dict(re.findall(r"^\* \*\*(.+)\*\*<br>\n  (.*)$", text, re.MULTILINE))
    if not importlib.util.find_spec("torch"):
        del found[NEEDS_TORCH]
    return found


@needs_larq
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="starts a TensorFlow process whatever the backend")
def test_the_page_is_what_the_script_prints():
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, str(ROOT / "tools" / "show_errors.py")]
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert messages(printed) == messages(page)
