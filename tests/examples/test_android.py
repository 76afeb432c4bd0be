"""The Android example reads the metadata that the converter writes; it is compiled elsewhere."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples/android/app/src/main/kotlin/org/binaryvit/classify/Metadata.kt"
ONLY_IN_VERSION_1 = {"resize"}


def test_fields():
    text = SOURCE.read_text(encoding="utf-8")
    read = set(re.findall(r'content\.(?:get|opt)\w+\("(\w+)"\)', text))
    assert read >= {"mean", "std", "resize_size", "labels", "outputs", "version"}
    for case in json.loads((ROOT / "tests" / "golden" / "preprocessing.json").read_text()):
        metadata = case["metadata"]
        assert read - ONLY_IN_VERSION_1 <= set(metadata)
        assert f"version in 1..{metadata['version']}" in text
