"""Runs the models of a folder on the emulated board and compares their outputs: arm64_check.py FOLDER LIBRARY.

Each `name.npz` holds the inputs, the outputs to expect and the tolerance, `name.tflite` the model.
"""

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate


def main():
    folder, library = Path(sys.argv[1]), sys.argv[2]
    paths = sorted(folder.glob("*.npz"))
    for path in paths:
        recording = np.load(path)
        interpreter = Interpreter(
            model_path=str(path.with_suffix(".tflite")), experimental_delegates=[load_delegate(library)], num_threads=2
        )
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], recording["input"])
        interpreter.invoke()
        actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        np.testing.assert_allclose(actual, recording["output"], rtol=0, atol=recording["atol"], err_msg=path.name)
    print(f"{len(paths)} models agree")


if __name__ == "__main__":
    main()
