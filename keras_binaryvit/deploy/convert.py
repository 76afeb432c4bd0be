"""convert: from a Keras model to a `.tflite` file.

The model is frozen (`freeze`: graph, lower, fold), written (by LCE's converter or TensorFlow's), named after the model,
and checked: each binary layer must be there, each operator known to an interpreter, and the outputs those of the model.
"""

import collections
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_binaryvit.deploy import composite, flatbuffer, tensorflow_converter
from keras_binaryvit.deploy.any_batch import take_any_batch
from keras_binaryvit.deploy.binary import binary_table
from keras_binaryvit.deploy.float16 import with_float16_constants
from keras_binaryvit.deploy.freeze import binary_layers, freeze
from keras_binaryvit.deploy.graph import ConversionError
from keras_binaryvit.deploy.inspect import inspect
from keras_binaryvit.deploy.int8 import with_int8_layers
from keras_binaryvit.deploy.metadata import add_metadata
from keras_binaryvit.deploy.runtime_layers import OPERATORS, fused_layers
from keras_binaryvit.deploy.verify import check_file
from keras_binaryvit.layers import ImagePreprocessor
from keras_binaryvit.models.image_classifier import ImageClassifier

CONVERTERS = ("auto", "lce", "tensorflow")
_LCE_OPERATORS = ("LceQuantize", "LceDequantize", "LceBconv2d", "LceBMaxPool2d")


def convert(
    model: keras.Model,
    ops: str = "lce",
    float16_constants: bool = False,
    *,
    batch_size: int | None = None,
    strict: bool = True,
    converter: str = "auto",
    float_layers: str = "float32",
    representative_data: Any = None,
    preprocessor: ImagePreprocessor | None = None,
    class_names: Sequence[str] | None = None,
) -> bytes:
    """Returns the `.tflite` flatbuffer of `model`.

    Its inputs and outputs have the order and the names of the model's. The file says how to prepare images and what the
    classes are called, where the model or the arguments do; `binaryvit-run` reads it. Where TensorFlow isn't the
    backend, conversion runs in a process of its own.

    Args:
        model: A model of any layers, trained or frozen.
        ops: `"lce"`: what an unmodified Larq Compute Engine runs. `"fused"`: one operator each for attention,
            feed-forward layers, pooling branches and binary patch merging, which binaryvit-runtime runs
            (docs/operators.md); all else is as with `"lce"`.
        float16_constants: Whether large float constants outside of custom operators, such as position embeddings and
            the kernel of the head, are stored as float16. The file is smaller, and rounding flips a few bits.
        batch_size: Images that the file computes at once; by default as many as the model's inputs say, else one.
            Interpreters plan for it; `resize_tensor_input` changes it where no operator fixes it.
        strict: Whether a layer that has 1-bit quantizers and wouldn't be binary in the file is an error. It is a
            warning without.
        converter: `"lce"`: the Larq Compute Engine's. `"tensorflow"`: TensorFlow's, which writes the same file on
            every machine that TensorFlow has a wheel for. `"auto"`: LCE's where it is installed and can convert.
        float_layers: `"int8"`: convolutions and dense layers that aren't binary are quantized after training, which
            makes the file smaller, and changes some classes; binary layers stay as they are.
        representative_data: About 100 prepared inputs that the ranges of int8 values are taken from: an array, or
            batches such as a `tf.data.Dataset` of `data.load`.
        preprocessor: How to make the input of an image; `None` means as the model's `preprocessor` does.
        class_names: The classes' names, in the order of the outputs; `None` means the model's.

    Raises:
        ValueError: An argument is unknown, out of range or doesn't fit the model, a side of an input is unknown, or
            float16 can't hold a constant.
        ConversionError: A layer can't be converted, or would compute something else in the file; the message names it.
        ImportError: TensorFlow isn't installed, or with `converter="lce"` the Larq Compute Engine isn't, or with
            `float_layers="int8"` binaryvit-runtime isn't.
    """
    chosen = _chosen(converter)
    if float_layers not in ("float32", "int8") or (float_layers == "int8") != (representative_data is not None):
        raise ValueError(
            "float_layers must be 'float32', or 'int8' with representative_data. "
            f"Received: float_layers={float_layers!r}, representative_data of type {type(representative_data).__name__}"
        )
    rows = binary_table(model)
    if strict and (claimed := [row for row in rows if row.claimed and not row.binary]):
        raise ConversionError(
            "These layers have 1-bit quantizers and wouldn't be binary in the file:"
            + "".join(f"\n  {row}" for row in claimed)
            + "\nconvert(..., strict=False) computes them in float32."
        )
    frozen = freeze(model, ops)
    named = model if hasattr(model, "inputs") else frozen  # a subclassed model has neither of its own
    shapes = [_input_shape(tensor, batch_size) for tensor in named.inputs]
    write = convert_frozen if keras.backend.backend() == "tensorflow" else _convert_elsewhere
    ends = shapes, _input_names(named), _output_names(named)
    try:
        content = write(frozen, *ends, chosen)
    except ConversionError as error:
        if chosen != "lce":
            raise
        if converter == "lce":
            raise ConversionError(f"{error} converter='tensorflow' may write what the model computes.") from error
        content = write(frozen, *ends, "tensorflow")
    if remaining := [row for row in rows if not row.binary]:
        named_rows = "".join(f"\n  {row}" for row in remaining)
        warnings.warn(f"These layers have quantizers and are float32 in the file:{named_rows}", stacklevel=2)
    if float_layers == "int8":
        content = with_int8_layers(content, representative_data)
    if float16_constants:
        content = with_float16_constants(content)
    if isinstance(model, ImageClassifier) and model.include_top:
        preprocessor = model.preprocessor if preprocessor is None else preprocessor
        class_names = model.class_names if class_names is None else class_names
    return content if preprocessor is class_names is None else add_metadata(content, preprocessor, class_names)


def _chosen(converter: str) -> str:
    """Returns which converter to use, checked without importing it: that starts TensorFlow."""
    if converter not in CONVERTERS:
        raise ValueError(f"converter must be one of {', '.join(CONVERTERS)}. Received: converter={converter!r}")
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError("Conversion needs TensorFlow: pip install 'keras-binaryvit[tensorflow]'.")
    has_lce = importlib.util.find_spec("larq_compute_engine") is not None
    if converter == "lce" and not has_lce:
        raise ImportError(
            "converter='lce' needs the Larq Compute Engine, which has wheels for Python 3.11 and 3.12 on 64-bit x86 "
            "Linux only: pip install 'keras-binaryvit[lce]'. converter='tensorflow' writes the same file everywhere."
        )
    return {"auto": "lce" if has_lce else "tensorflow"}.get(converter, converter)


def _input_names(model: keras.Model) -> list[str]:
    # Keras counts the inputs of a process where the user gave no name.
    names = [tensor.name for tensor in model.inputs]
    return _distinct(["input" if name.startswith("keras_tensor") else name for name in names])


def _output_names(model: keras.Model) -> list[str]:
    """Returns the name of each output: its key in a dict, or that of the layer that computes it."""
    structure = getattr(model, "_outputs_struct", model.outputs)
    if isinstance(structure, dict) and len(structure) == len(model.outputs):
        return sorted(structure)
    return _distinct([tensor._keras_history.operation.name for tensor in keras.tree.flatten(structure)])


def _distinct(names: list[str]) -> list[str]:
    before = [names[:index].count(name) for index, name in enumerate(names)]
    return [f"{name}_{count}" if count else name for name, count in zip(names, before, strict=True)]


def _input_shape(tensor: keras.KerasTensor, batch_size: int | None) -> tuple[int, ...]:
    fixed, *sides = tensor.shape
    if None in sides:
        raise ValueError(
            "Every side of the input but the batch must be known: interpreters plan their memory before they run. "
            f"Received: the input {tensor.name!r} of shape {tensor.shape}"
        )
    if batch_size is not None and (batch_size < 1 or fixed not in (None, batch_size)):
        raise ValueError(
            f"batch_size must be positive, and {fixed} where the input {tensor.name!r} says it. "
            f"Received: batch_size={batch_size}"
        )
    return (batch_size or fixed or 1, *sides)


def convert_frozen(
    frozen: keras.Model, shapes: Sequence[Sequence[int]], inputs: list[str], outputs: list[str], converter: str
) -> bytes:
    """Returns the checked flatbuffer of a frozen model, on TensorFlow, with inputs of these shapes and names, and
    outputs."""
    import tensorflow as tf

    # LCE cuts the names of tensors to 50 characters, which belong to the layers.
    model = keras.Model(frozen.input, frozen.output, name="m")
    signature = [
        tf.TensorSpec(shape, tensor.dtype, f"input_{index}")
        for index, (shape, tensor) in enumerate(zip(shapes, frozen.inputs, strict=True))
    ]

    def serve(*inputs):
        outputs = keras.tree.flatten(model(keras.tree.pack_sequence_as(frozen.input, inputs), training=False))
        return {f"output_{index}": output for index, output in enumerate(outputs)}

    # Traced once: Keras' own export does so several times, which for a large model takes longer than the conversion.
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    module.serve = tf.function(serve, input_signature=signature, autograph=False)
    with composite.writing(lce=converter == "tensorflow") as layers, tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=module.serve.get_concrete_function())
        if converter == "lce":
            import larq_compute_engine as lce

            content = lce.convert_saved_model(folder)
        else:
            content = tensorflow_converter.convert_saved_model(folder)
    file = flatbuffer.unpack(content)
    if converter == "tensorflow":
        tensorflow_converter.optimize(file)
    _name_operators(file, layers)
    _name_ends(file, frozen, shapes, inputs, outputs)
    take_any_batch(file, shapes[0][0])
    content = flatbuffer.pack(file)
    _check_operators(frozen, content)
    check_file(frozen, content)
    return content


def _name_operators(model, layers):
    """Gives the tensors of written operators names after their layers, which converters lose; `inspect` reads them."""
    names = flatbuffer.operator_names(model)
    for graph in model.subgraphs:
        for operator in graph.operators:
            options = flatbuffer.options_of(operator)
            if "layer" not in options:
                continue
            name = f"m_1/{layers[options.pop('layer')].name}_1/{names[operator.opcodeIndex]}"
            operator.customOptions = flatbuffer.as_options(options)
            for index in (*operator.inputs, *operator.outputs):
                constant = model.buffers[graph.tensors[index].buffer].data is not None
                if index >= 0 and (constant or index in operator.outputs):
                    graph.tensors[index].name = name.encode()


def _convert_elsewhere(frozen, *arguments):
    names = {type(layer).__module__ for layer in frozen._flatten_layers()}
    modules = sorted(name for name in names if name.split(".")[0] not in ("keras", "keras_binaryvit", "builtins"))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "frozen.keras"), Path(folder, "model.tflite")
        frozen.save(source)
        command = [sys.executable, "-m", "keras_binaryvit.deploy.convert_worker", str(source), str(target)]
        command.append(json.dumps({"modules": modules, "arguments": arguments}))
        # Modules of the caller's own layers are found where the caller finds them.
        path = os.pathsep.join(entry or os.curdir for entry in sys.path)
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": path}
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        if process.returncode:
            _, is_ours, message = process.stderr.strip().rpartition(f"{ConversionError.__name__}: ")
            raise ConversionError(
                message if is_ours else f"The conversion in a process of its own failed:\n{message[-2000:]}"
            )
        return target.read_bytes()


def _name_ends(model, frozen, shapes, input_names, output_names):
    """Gives a file the model's inputs and outputs, in its order and under its names."""
    schema, graph, signature = flatbuffer.schema(), model.subgraphs[0], model.signatureDefs[0]
    places = {entry.name.decode(): entry.tensorIndex for entry in (*signature.inputs, *signature.outputs)}
    types = {name: number for number, name in flatbuffer.names("TensorType").items()}
    graph.inputs, graph.outputs, signature.inputs, signature.outputs = [], [], [], []
    for index, (tensor, shape, name) in enumerate(zip(frozen.inputs, shapes, input_names, strict=True)):
        place = places.get(f"input_{index}")
        if place is None:  # nothing reads it, and the converter dropped it
            place = len(graph.tensors)
            dtype = types[keras.backend.standardize_dtype(tensor.dtype).upper()]
            graph.tensors.append(schema.TensorT(shape=list(shape), type=dtype, name=b""))
        graph.inputs.append(place)
        graph.tensors[place].name = name.encode()
        signature.inputs.append(schema.TensorMapT(name=name.encode(), tensorIndex=place))
    for index, name in enumerate(output_names):
        place = places[f"output_{index}"]
        if place not in (*graph.inputs, *graph.outputs):
            graph.tensors[place].name = name.encode()
        graph.outputs.append(place)
        signature.outputs.append(schema.TensorMapT(name=name.encode(), tensorIndex=place))


def _check_operators(frozen, content):
    """Checks that each binary layer is a binary operator, and that an interpreter knows each operator."""
    counts = count_operators(content)
    if unknown := set(counts).difference(_LCE_OPERATORS, OPERATORS, flatbuffer.names("BuiltinOperator").values()):
        found = [operator for operator in inspect(content).operators if operator.name in unknown]
        lines = "".join(f"\n  {operator.name}, in the layer {operator.origin!r}" for operator in found[:10])
        raise ConversionError(
            f"No interpreter has these operators:{lines}\nWrite what the layer computes with other operations, such as "
            "those of keras.ops that are sums, products, exp, log, tanh or comparisons."
        )
    operators = [("LceBconv2d", layer) for layer in binary_layers(frozen)]
    operators += [(layer.operator, layer) for layer in fused_layers(frozen)]
    different = dict.fromkeys((name, _constants(layer)) for name, layer in operators)
    expected = collections.Counter(name for name, _ in different)  # equal layers of one input are computed once
    for name, count in (expected - counts).items():
        raise ConversionError(
            f"The model has {expected[name]} different layers that are {name}, but the file has "
            f"{expected[name] - count}; the others would run in float32. Please report the model."
        )


def _constants(layer: keras.layers.Layer) -> tuple:
    config = {name: str(value) for name, value in layer.get_config().items() if name != "name"}
    return (*sorted(config.items()), *(value.tobytes() for value in layer.get_weights()))


def count_operators(content: bytes) -> collections.Counter:
    """Returns how many operators of each type a flatbuffer has, by name such as `"CONV_2D"` or `"LceBconv2d"`.

    Raises:
        ValueError: These bytes are no TFLite flatbuffer.
    """
    return collections.Counter(operator.name for operator in flatbuffer.read(content).operators)
