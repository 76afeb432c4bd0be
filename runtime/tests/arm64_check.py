"""Runs the models of a folder on the emulated board and compares their outputs: arm64_check.py FOLDER LIBRARY...

Each `name.npz` holds the inputs, the outputs to expect and the tolerance, `name.tflite` the model. All libraries must
give the same bits, but for those of NaNs, which depend on the order of two summands.
"""

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate


def output(path, x, library):
    """Returns what a model computes with the delegate of a library."""
    delegates = [load_delegate(library)]
    interpreter = Interpreter(model_path=str(path), experimental_delegates=delegates, num_threads=2)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def bits(x):
    """Returns the bits of an array, zeros for NaNs."""
    return np.where(x == x, x, x.dtype.type(0)).tobytes()


def main():
    folder, *libraries = sys.argv[1:]
    paths = sorted(Path(folder).glob("*.npz"))
    for path in paths:
        recording = np.load(path)
        first, *others = [output(path.with_suffix(".tflite"), recording["input"], library) for library in libraries]
        np.testing.assert_allclose(first, recording["output"], rtol=0, atol=recording["atol"], err_msg=path.name)
        if any(bits(other) != bits(first) for other in others):
            raise AssertionError(f"{path.name}: the libraries {libraries} give other bits")
    print(f"{len(paths)} models agree")


if __name__ == "__main__":
    main()
