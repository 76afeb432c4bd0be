"""Writes the weights of a .keras model under the names of the authors' PyTorch code.

binaryvit-to-torch model.keras model.pth

Their code reads it with --current-best-model or --teacher-model-file; the counters num_batches_tracked, which nothing
depends on, are left out.
"""

import argparse

from binaryvit_commands import command


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the .keras file of a BinaryViT or DeiT")
    parser.add_argument("checkpoint", help="the .pth (needs PyTorch), .safetensors or .npz file to write")
    return parser.parse_args()


@command
def main() -> None:
    """Loads, renames and writes."""
    arguments = parse_arguments()
    from keras_binaryvit import torch_checkpoints
    from keras_binaryvit.files import check_output, load_model

    check_output(arguments.checkpoint)
    model = load_model(arguments.model)
    state = torch_checkpoints.to_torch_state_dict(model)
    torch_checkpoints.write_state_dict(arguments.checkpoint, state)
    print(f"Wrote {len(state)} tensors of the {type(model).__name__} {model.name!r} to {arguments.checkpoint}")
