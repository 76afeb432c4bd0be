"""unpack and pack: a flatbuffer as objects that can be changed, of the schema that TensorFlow brings."""

import importlib
from typing import Any


def schema() -> Any:
    """Returns the module of the schema's classes.

    Raises:
        ImportError: TensorFlow isn't installed.
    """
    try:
        return importlib.import_module("tensorflow.lite.python.schema_py_generated")
    except ImportError as error:
        raise ImportError(
            "Flatbuffers are changed with TensorFlow's schema of them; `pip install 'keras-binaryvit[tensorflow]'` "
            f"installs it. The error was: {error}"
        ) from error


def unpack(flatbuffer: bytes) -> Any:
    """Returns the `ModelT` of a TFLite flatbuffer; it is taken at its word, so `tflite.read` it first."""
    classes = schema()
    return classes.ModelT.InitFromObj(classes.Model.GetRootAs(flatbuffer, 0))


def pack(model: Any) -> bytes:
    """Returns the flatbuffer of a `ModelT`."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        def StartVector(self, element_size, count, alignment):
            # Constants are read where they lie, by kernels that want whole vectors.
            alignment = 16 if element_size == 1 and count >= 16 else alignment
            super().StartVector(element_size, count, alignment)

    builder = Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
