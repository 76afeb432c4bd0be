"""How models start, and that what is saved computes the same in a process that has nothing but the file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gradients import compiled
from layer_checks import flat_vit, normal, numpy, randomize

import keras_binaryvit as kb

SIZES = {"image_shape": (8, 16, 3), "num_classes": 3, "patch_size": 4}
STAGES = {"embed_dims": (4, 8), "depths": (1, 1), "num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 1)}
BLOCKS = {"embed_dim": 8, "depth": 1, "num_heads": 2}
MODELS = {
    "pyramid": lambda: kb.BinaryViT(**{**SIZES, "patch_size": 2}, **STAGES),
    "row_1": lambda: flat_vit(**SIZES, **BLOCKS, use_class_token=True, use_pooling_branches=False, use_affine=False),
    "row_4": lambda: flat_vit(**SIZES, **BLOCKS),
    "teacher": lambda: kb.DeiT(**SIZES, **BLOCKS),
}
IMAGES = normal(2, *SIZES["image_shape"])

SCRIPT = """
import sys
import perturbation
perturbation.install_if_asked()
import keras, keras_binaryvit, numpy as np
from gradients import compiled
for name in sys.argv[1:]:
    model = keras.saving.load_model(f"{name}.keras")
    logits = keras.ops.convert_to_numpy(compiled(model)(np.load("images.npy")))
    np.savez(f"{name}.npz", type=type(model).__name__, logits=logits)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Saves all models and returns, of each, it and what a single new process computed."""
    folder = tmp_path_factory.mktemp("saved")
    models = {name: randomize(create(), seed) for seed, (name, create) in enumerate(MODELS.items())}
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    np.save(folder / "images.npy", IMAGES)
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    subprocess.run([sys.executable, "-c", SCRIPT, *models], cwd=folder, env=environment, check=True)
    return {name: (model, dict(np.load(folder / f"{name}.npz"))) for name, model in models.items()}


@pytest.mark.parametrize("name", MODELS)
def test_all_kernels_start_from_values_of_their_own(name):
    kernels = [numpy(weight).ravel() for weight in MODELS[name]().weights if "kernel" in weight.path]
    firsts = {tuple(kernel[:8]) for kernel in kernels}
    assert len(firsts) == len(kernels) > 5


def test_models_load_in_a_new_process(results):
    for name, (model, result) in results.items():
        assert str(result["type"]) == type(model).__name__
        expected = numpy(compiled(model)(IMAGES))
        np.testing.assert_allclose(result["logits"], expected, rtol=1e-6, atol=1e-6, err_msg=name)
