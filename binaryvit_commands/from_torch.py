"""Converts a PyTorch checkpoint of the authors' code to a .keras model.

binaryvit-from-torch best.pth model.keras --preset binaryvit_small
binaryvit-from-torch recording.npz model.keras --config config.json
"""

import argparse

from binaryvit_commands import command


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        help="a .pth file (a state dict or a training checkpoint; needs PyTorch), .safetensors, or .npz (plain names, "
        "or names under state/)",
    )
    parser.add_argument("model", help="the .keras file to write")
    architecture = parser.add_mutually_exclusive_group(required=True)
    architecture.add_argument(
        "--preset", help="the architecture's name, such as binaryvit_small, reactdeit_small or deit_small"
    )
    architecture.add_argument(
        "--config",
        help="the authors' config.json; what the tensors show (classes, patch size, branches, affine, class token, "
        "full-precision merging) is read from them",
    )
    return parser.parse_args()


@command
def main() -> None:
    """Reads, creates, loads and writes, in this order: nothing is written unless every tensor fits."""
    arguments = parse_arguments()
    import numpy as np

    from keras_binaryvit import torch_checkpoints
    from keras_binaryvit.files import check_output, save_model

    check_output(arguments.model)
    config = torch_checkpoints.read_config(arguments.config) if arguments.config else None
    state = torch_checkpoints.read_state_dict(arguments.checkpoint)
    values = sum(np.size(array) for array in state.values())
    print(f"Read {len(state)} tensors with {values:,} values. Creating the model ...", flush=True)
    model = torch_checkpoints.create_model(state, arguments.preset, config)
    torch_checkpoints.load_torch_state_dict(model, state)
    shape = "x".join(str(size) for size in model.image_shape)
    print(f"{type(model).__name__}, {shape} images, {model.num_classes} classes, {model.count_params():,} parameters")
    save_model(arguments.model, model)
    print(f"Wrote {arguments.model}")
