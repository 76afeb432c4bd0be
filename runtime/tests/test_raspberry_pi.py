"""examples/raspberry_pi/classify.py, with an image file and with a camera that isn't there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from classifiers import classifier
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "raspberry_pi" / "classify.py"
KERNEL = np.eye(3, 12) * 9  # the class is the channel of the first pixel that is brightest
METADATA = {"version": 1, "mean": [0, 0, 0], "std": [1, 1, 1], "labels": ["red", "green", "blue"]}

CAMERA = """
import numpy as np
from PIL import Image

class Picamera2:
    def __enter__(self): print("open"); return self
    def __exit__(self, *_): print("closed")
    def create_video_configuration(self, main): return main
    def configure(self, main): self.width, self.height = main["size"]
    def start(self): self.colors = [(0, 255, 0), (0, 0, 255)]
    def capture_image(self):
        if not self.colors: raise KeyboardInterrupt
        return Image.new("RGB", (self.width, self.height), self.colors.pop(0))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.tflite").write_bytes(classifier(KERNEL, (2, 2, 3), json.dumps(METADATA).encode()))
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "a.png")
    return tmp_path


def classify(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_an_image(folder):
    done = classify(folder, "model.tflite", "a.png", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == [f"{np.exp(9) / (np.exp(9) + 2):.2%}", "red"]


def test_the_camera_until_ctrl_c(folder):
    (folder / "picamera2.py").write_text(CAMERA)
    done = classify(folder, "model.tflite", "--threads", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "open" and lines[3] == "closed"
    assert lines[1].startswith("100% green") and lines[2].startswith("100% blue")


def test_what_is_missing(folder):
    (folder / "picamera2.py").write_text("raise ImportError('no camera')")
    done = classify(folder, "model.tflite")
    assert done.returncode != 0 and "needs picamera2: apt install" in done.stderr and "Traceback" not in done.stderr
    done = classify(folder, "nowhere.tflite", "a.png")
    assert done.returncode != 0 and "classify.py: There is no model file 'nowhere.tflite'" in done.stderr
