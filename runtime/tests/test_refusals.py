"""What is wrong with a model is said, by the operator's name and the reason; nothing crashes."""

import numpy as np
import pytest
from flatbuffers import flexbuffers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Tensor, options, run, single_op

CONVOLUTION = {
    "stride_height": 1,
    "stride_width": 1,
    "dilation_height_factor": 1,
    "dilation_width_factor": 1,
    "padding": 1,
    "pad_values": 0,
    "channels_in": 64,
    "fused_activation_function": 0,
}
POOLING = {"filter_height": 2, "filter_width": 2, "stride_height": 1, "stride_width": 1, "padding": 1}


def floats(count):
    return Tensor((count,), "float32", np.ones(count, np.float32))


def words(*shape):
    return Tensor(shape, "int32", np.ones(shape, np.int32))


def convolution(x=(1, 4, 4, 2), kernel=None, multiplier=None, bias=None, threshold=None, output=None, **changes):
    kernel = kernel or words(8, 1, 1, 2)
    values = {name: value for name, value in (CONVOLUTION | changes).items() if value is not None}
    inputs = [Tensor(x, "int32"), kernel, multiplier or floats(8), bias or floats(8), threshold]
    return single_op("LceBconv2d", inputs, output or Tensor((1, 4, 4, 8), "float32"), options(**values))


def pooling(x=None, output=None, **changes):
    values = {name: value for name, value in (POOLING | changes).items() if value is not None}
    return single_op(
        "LceBMaxPool2d",
        [x or Tensor((1, 4, 4, 2), "int32")],
        output or Tensor((1, 3, 3, 2), "int32"),
        options(**values),
    )


def with_options(content):
    inputs = [Tensor((1, 4, 4, 2), "int32"), words(8, 1, 1, 2), floats(8), floats(8), None]
    return single_op("LceBconv2d", inputs, Tensor((1, 4, 4, 8), "float32"), content)


def quantize(x, output):
    return single_op("LceQuantize", [x], output)


def dequantize(x, output):
    return single_op("LceDequantize", [x], output)


def not_a_map():
    builder = flexbuffers.Builder()
    builder.Int(3)
    return bytes(builder.Finish())


REFUSED = {
    "no options": (with_options(b""), "LceBconv2d: its options are no flexbuffer map"),
    "options of another kind": (with_options(not_a_map()), "LceBconv2d: its options are no flexbuffer map"),
    "options cut off": (with_options(options(**CONVOLUTION)[7:]), "LceBconv2d: "),
    "missing option": (convolution(stride_width=None), "LceBconv2d: its options have no integer 'stride_width'"),
    "option of another type": (convolution(stride_width="1"), "LceBconv2d: its options have no integer 'stride_width'"),
    "zero stride": (convolution(stride_height=0), "'stride_height' must be between 1 and"),
    "negative stride": (convolution(stride_height=-1), "'stride_height' must be between 1 and 2147483647, but is -1"),
    "huge stride": (convolution(stride_height=2**40), "'stride_height' must be between"),
    "zero dilation": (convolution(dilation_height_factor=0), "'dilation_height_factor' must be"),
    "unknown padding": (convolution(padding=2), "'padding' must be between 0 and 1, but is 2"),
    "unknown pad value": (convolution(pad_values=-1), "'pad_values' must be between 0 and 1"),
    "unknown activation": (convolution(fused_activation_function=4), "'fused_activation_function' must be"),
    "no channels": (convolution(channels_in=0), "'channels_in' must be"),
    "too many channels": (convolution(channels_in=65), "65 channels need 3 words, but the input has 2"),
    "channels that overflow": (convolution(channels_in=2**31 - 1), "channels need 67108864 words"),
    "input of rank 3": (convolution(x=(4, 4, 2)), "the input must have 4 dimensions, but has 3"),
    "filter of rank 3": (convolution(kernel=words(8, 1, 2)), "the filter must have 4 dimensions, but has 3"),
    "filter of floats": (
        convolution(kernel=Tensor((8, 1, 1, 2), "float32", np.ones(16, np.float32))),
        "the filter must be int32, but is float32",
    ),
    "filter that is computed": (convolution(kernel=Tensor((8, 1, 1, 2), "int32")), "the filter must be a constant"),
    "groups of unequal words": (
        convolution(x=(1, 4, 4, 3), channels_in=96),
        "the filter has 2 words of channels, which doesn't divide the input's 3",
    ),
    "groups of broken words": (
        convolution(x=(1, 4, 4, 4), channels_in=100),
        "100 channels don't split into 2 groups of whole words",
    ),
    "filters that don't split": (
        convolution(x=(1, 4, 4, 4), channels_in=128, kernel=words(7, 1, 1, 2)),
        "7 filters don't split into 2 groups",
    ),
    "window larger than the map": (
        convolution(kernel=words(8, 5, 1, 2)),
        "a filter of 5 x 1 with dilations 1 x 1 is larger than the map of 4 x 4",
    ),
    "dilation larger than the map": (
        convolution(kernel=words(8, 2, 1, 2), dilation_height_factor=2**31 - 1),
        "is larger than the map",
    ),
    "short multiplier": (
        convolution(multiplier=floats(7)),
        "the multiplier must have 8 values, one per filter, but",
    ),
    "bias of integers": (convolution(bias=words(8)), "the bias must be float32, but is int32"),
    "missing threshold": (convolution(output=Tensor((1, 4, 4, 1), "int32")), "the threshold is missing"),
    "output of another type": (
        convolution(output=Tensor((1, 4, 4, 8), "int64")),
        "the output must be float32, int8",
    ),
    "int8 without a scale": (convolution(output=Tensor((1, 4, 4, 8), "int8")), "the int8 output must have a"),
    "too few inputs": (
        single_op("LceBconv2d", [Tensor((1, 4, 4, 2), "int32")], Tensor((1, 4, 4, 8), "float32"), b""),
        "LceBconv2d: takes 5 inputs and 1 outputs, but the node has 1 and 1",
    ),
    "input left out": (
        single_op("LceBconv2d", [None, words(8, 1, 1, 2), None, None, None], Tensor((1, 4, 4, 8), "float32"), b""),
        "LceBconv2d: ",
    ),
    "pooling without a window": (pooling(filter_width=0), "LceBMaxPool2d: option 'filter_width' must be"),
    "pooling larger than the map": (pooling(filter_width=5), "a window of 2 x 5 is larger than the map of 4 x 4"),
    "pooling of floats": (pooling(x=Tensor((1, 4, 4, 2), "float32")), "the input must be int32, but is float32"),
    "pooling of rank 2": (pooling(x=Tensor((4, 2), "int32")), "the input must have 4 dimensions, but has 2"),
    "bits of int64": (
        quantize(Tensor((1, 40), "int64"), Tensor((1, 2), "int32")),
        "LceQuantize: the input must be float32, int8 or bool",
    ),
    "bits to floats": (
        quantize(Tensor((1, 40), "float32"), Tensor((1, 2), "float32")),
        "LceQuantize: the output must be int32, but is float32",
    ),
    "channels and words that differ": (
        dequantize(Tensor((1, 2), "int32"), Tensor((1, 65), "float32")),
        "LceDequantize: 65 channels of the output need 3 words, but the input has 2",
    ),
    "ranks that differ": (
        dequantize(Tensor((1, 2), "int32"), Tensor((1, 1, 64), "float32")),
        "LceDequantize: the input must have 3 dimensions, but has 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_models_are_refused_by_name_and_reason(name):
    flatbuffer, message = REFUSED[name]
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run(flatbuffer)
    assert message in str(caught.value)


def test_weights_shorter_than_their_shape_are_refused():
    """By LiteRT itself, or by the operator."""
    kernel = Tensor((8, 1, 1, 2), "int32", bytes(60))
    with pytest.raises((RuntimeError, ValueError)):
        run(convolution(kernel=kernel))


def test_filters_of_more_bits_than_counts_hold_are_refused():
    taps = (2**10, 2**15)
    kernel = Tensor((1, *taps, 1), "int32", bytes(4 * taps[0] * taps[1]))
    flatbuffer = convolution((1, 4, 4, 1), kernel, floats(1), floats(1), channels_in=32, padding=0)
    with pytest.raises(RuntimeError, match=r"LceBconv2d: a filter has 2\^30 bits or more"):
        run(flatbuffer)


@settings(max_examples=300)
@given(content=st.binary(max_size=80))
def test_random_options_are_refused(content):
    with pytest.raises(RuntimeError, match="LceBconv2d"):
        run(with_options(content))


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_options_run_or_are_refused(data):
    content = bytearray(options(**CONVOLUTION))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        run(with_options(bytes(content)), np.zeros((1, 4, 4, 2), np.int32))
    except RuntimeError as error:
        assert "LceBconv2d" in str(error)


def test_unknown_kernels_are_refused(monkeypatch):
    from binaryvit_runtime import load_delegate

    monkeypatch.setenv("BINARYVIT_KERNELS", "sve")
    with pytest.raises(ValueError, match="BINARYVIT_KERNELS is 'sve'; it must be one of scalar"):
        load_delegate()


@pytest.mark.parametrize("num_threads", [0, -1, 65])
def test_numbers_of_threads_are_refused(num_threads):
    from binaryvit_runtime import load_delegate

    with pytest.raises(ValueError, match="num_threads must be between 1 and 64"):
        load_delegate(num_threads)


def test_unknown_delegate_options_are_refused():
    from ai_edge_litert.interpreter import load_delegate
    from binaryvit_runtime import library_path

    for wrong, message in [
        ({"threads": 1}, "unknown option 'threads'; there are num_threads and profile"),
        ({"num_threads": "2x"}, "num_threads must be 1 to 64, but is '2x'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_delegate(str(library_path()), wrong)
