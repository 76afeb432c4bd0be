"""Runs binary networks in LiteRT, with the Larq Compute Engine's operators as a delegate in C++."""

from binaryvit_runtime.interpreter import Interpreter, library_path, load_delegate

__all__ = ["Interpreter", "library_path", "load_delegate"]
__version__ = "0.1.0"
