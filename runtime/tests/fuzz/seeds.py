"""Writes what the fuzz targets start from: python seeds.py FOLDER.

Nodes go to FOLDER/operator and graphs to FOLDER/graph, in the formats of fuzz_operator.cc and fuzz_graph.cc.
"""

import struct
import sys
from pathlib import Path

OPERATORS = {
    "LceQuantize": [],
    "LceDequantize": [],
    "LceBconv2d": [
        "channels_in",
        "dilation_height_factor",
        "dilation_width_factor",
        "fused_activation_function",
        "pad_values",
        "padding",
        "stride_height",
        "stride_width",
    ],
    "LceBMaxPool2d": ["filter_height", "filter_width", "padding", "stride_height", "stride_width"],
    "BinaryVitAttention": ["heads", "reduction", "residual"],
    "BinaryVitFeedForward": ["residual"],
    "BinaryVitPatchMerging": [],
    "BinaryVitPooling": ["residual", "vertical"],
}
TYPES = ["float32", "int32", "int8", "bool"]
COMPUTED, CONSTANT, LEFT_OUT, FIRST_INPUT, NO_TENSOR = range(5)
RESIZES, PROFILES, RECOMMENDS_THREADS, RUNS_TWICE, KEEPS_ORDER = 1, 2, 4, 8, 16
THREADS = {1: 0, 2: 6, 3: 7}
KERNELS = ["", "sse", "avx2", "avx512bw"]  # "": the best, such as avx512; the oracle has the scalar ones
INTEGER = 1  # the type of an option
REALS, BITS, ZEROS, PAIR, EIGHTS, MULTIPLES, FOURS, AXES = range(8)  # contents; nodes alone have the first three
BUILTIN_OPERATORS = ["ADD", "MUL", "ADD_N", "PRELU", "TILE", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MEAN"]
GRAPH_OPERATORS = [*BUILTIN_OPERATORS, *OPERATORS]


def tensor(shape, dtype="float32", storage=COMPUTED, scale=None, more=0, offset=0, content=None):
    """Returns the bytes of a tensor; its data may have `more` bytes than its shape, or not be aligned."""
    result = bytes([storage, TYPES.index(dtype), len(shape)]) + struct.pack(f"<{len(shape)}i", *shape)
    result += b"\x00" if scale is None else b"\x01" + struct.pack("<fi", scale, 3)
    content = {"float32": 0}.get(dtype, 1) if content is None else content  # reals, or bits
    return result + struct.pack("<hBB", more, offset, content)


def constant(shape, dtype="float32", **changes):
    return tensor(shape, dtype, CONSTANT, **changes)


def node(name, inputs, output, kernels="", threads=1, switches=0, resized=(), **options):
    """Returns the bytes of a node."""
    names = OPERATORS[name]
    result = bytes([list(OPERATORS).index(name), KERNELS.index(kernels), THREADS[threads], switches, 0, len(names)])
    for option in names:
        result += struct.pack("<iB", options[option], INTEGER)
    result += bytes([len(inputs)]) + b"".join(inputs) + output
    return result + struct.pack(f"<{len(resized)}i", *resized)


def words(channels):
    return -(-channels // 32)


def convolution(x, filters, taps=(1, 1), groups=1, output="float32", scale=None, **changes):
    batch, height, width, channels = x
    settings = {
        "channels_in": channels,
        "dilation_height_factor": 1,
        "dilation_width_factor": 1,
        "fused_activation_function": 0,
        "pad_values": 0,
        "padding": 0,
        "stride_height": 1,
        "stride_width": 1,
    }
    inputs = [
        tensor((batch, height, width, words(channels)), "int32"),
        constant((filters, *taps, words(channels) // groups), "int32"),
        constant((filters,)),
        constant((filters,)),
        constant((filters,), "int32") if output == "int32" else bytes([LEFT_OUT]),
    ]
    return node("LceBconv2d", inputs, tensor((1, 1, 1, 1), output, scale=scale), **settings | changes)


def max_pooling(x, size, padding=0, stride=1, **changes):
    sides = {"filter_height": size, "filter_width": size, "stride_height": stride, "stride_width": stride}
    output = tensor((1, 1, 1, 1), "int32")
    return node("LceBMaxPool2d", [tensor(x, "int32")], output, padding=padding, **sides, **changes)


def attention(x, heads=1, reduction=1, residual=0, **changes):
    channels = x[-1]
    inputs = [
        tensor(x),
        constant((5 if reduction > 1 else 4, channels, words(channels)), "int32"),
        constant((29 if reduction > 1 else 25, channels)),
        constant((1,)),
    ]
    options = {"heads": heads, "reduction": reduction, "residual": residual}
    return node("BinaryVitAttention", inputs, tensor(x), **options, **changes)


def feed_forward(x, expansion, residual=0, **changes):
    channels, hidden = x[-1], x[-1] * expansion
    inputs = [
        tensor(x),
        constant((hidden, words(channels)), "int32"),
        constant((4, hidden)),
        constant((channels, words(hidden)), "int32"),
        constant((7, channels)),
    ]
    inputs += [tensor(x)] * residual
    return node("BinaryVitFeedForward", inputs, tensor(x), residual=residual, **changes)


def patch_merging(x, copies, **changes):
    channels, units = x[-1], x[-1] * copies
    inputs = [
        tensor(x),
        constant((units, 4 * words(channels)), "int32"),
        constant((2, channels)),
        constant((3, units)),
    ]
    return node("BinaryVitPatchMerging", inputs, tensor((1, 1, 1, 1)), **changes)


def pooling(x, vertical, horizontal, residual=0, **changes):
    inputs = [tensor(x), constant((4 + vertical + horizontal, x[-1]))]
    return node("BinaryVitPooling", inputs, tensor(x), vertical=vertical, residual=residual, **changes)


def seeds():
    """Returns nodes by name that run, of every operator."""
    bits = tensor((1, 1, 1, 1), "int32")
    again = {"switches": RESIZES | RUNS_TWICE}
    found = {
        "quantize_float32": node("LceQuantize", [tensor((2, 3, 65))], bits),
        "quantize_float32_words": node("LceQuantize", [tensor((5, 64))], bits, threads=3),
        "quantize_int8": node("LceQuantize", [tensor((2, 33), "int8", scale=0.5)], bits),
        "quantize_bool": node("LceQuantize", [tensor((2, 2, 2, 31), "bool")], bits, **again, resized=(1, 1, 3, 40)),
        "dequantize_float32": node("LceDequantize", [tensor((2, 3, 2), "int32")], tensor((1, 1, 40))),
        "dequantize_int8": node("LceDequantize", [tensor((3, 1), "int32")], tensor((1, 20), "int8", scale=0.5)),
        "dequantize_bool": node("LceDequantize", [tensor((3, 1), "int32")], tensor((1, 20), "bool")),
        "convolution_1x1": convolution((1, 3, 3, 64), 40),
        "convolution_same_0": convolution((1, 4, 4, 40), 9, (3, 3)),
        "convolution_same_1": convolution((1, 4, 4, 40), 9, (3, 3), pad_values=1, threads=2),
        "convolution_dilated": convolution((2, 5, 5, 32), 3, (2, 3), dilation_height_factor=2, stride_width=2),
        "convolution_groups": convolution((1, 3, 3, 64), 4, (2, 2), groups=2, padding=1, fused_activation_function=2),
        "convolution_int8": convolution(
            (1, 3, 3, 20), 5, (3, 3), output="int8", scale=0.1, fused_activation_function=3
        ),
        "convolution_bits": convolution((1, 3, 3, 20), 35, (3, 3), output="int32", **again, resized=(2, 4, 2, 1)),
        "max_pooling": max_pooling((1, 5, 5, 2), 3, stride=2, **again, resized=(2, 3, 3, 2)),
        "max_pooling_valid": max_pooling((1, 5, 4, 1), 2, padding=1, threads=3),
        "attention": attention((1, 3, 3, 32), threads=3, residual=1, **again, resized=(2, 4, 4, 32)),
        "attention_ragged": attention((2, 2, 3, 42), heads=2, residual=1),
        "attention_reduced": attention((1, 4, 6, 33), heads=3, reduction=2, threads=2, **again, resized=(1, 2, 2, 33)),
        "attention_reduced_even": attention((1, 6, 3, 64), heads=2, reduction=3, residual=1),
        "feed_forward": feed_forward((17, 32), 4, threads=3, **again, resized=(3, 32)),
        "feed_forward_ragged": feed_forward((2, 3, 20), 3, residual=1),
        "feed_forward_wide": feed_forward((1, 1, 3, 16), 33),
        "feed_forward_halves": feed_forward((9, 64), 8),
        "merging": patch_merging((1, 4, 6, 32), 2, threads=3, **again, resized=(2, 2, 2, 32)),
        "merging_ragged": patch_merging((1, 2, 4, 20), 3),
        "pooling": pooling((1, 6, 9, 35), 2, 2, residual=1, threads=3, **again, resized=(1, 1, 2, 35)),
        "pooling_3": pooling((2, 5, 9, 17), 3, 3),
        "pooling_uneven": pooling((1, 3, 3, 5), 4, 1, switches=PROFILES | RECOMMENDS_THREADS),
    }
    for kernels in KERNELS[1:]:
        found |= {
            f"convolution_{kernels}": convolution((1, 3, 3, 72), 19, (2, 2), kernels=kernels),
            f"attention_{kernels}": attention((1, 4, 4, 40), 2, 2, 1, kernels=kernels),
            f"feed_forward_{kernels}": feed_forward((11, 48), 5, kernels=kernels),
            f"feed_forward_halves_{kernels}": feed_forward((11, 64), 4, kernels=kernels),
            f"merging_{kernels}": patch_merging((1, 2, 6, 33), 2, kernels=kernels),
            f"pooling_{kernels}": pooling((1, 4, 5, 18), 1, 1, kernels=kernels),
            f"quantize_{kernels}": node("LceQuantize", [tensor((2, 70))], bits, kernels=kernels),
        }
    return found


class Graph:
    """A graph that grows node by node."""

    def __init__(self):
        self.tensors, self.nodes = [], []

    def tensor(self, *shape, **changes):
        self.tensors.append(tensor(shape, **changes))
        return len(self.tensors) - 1

    def constant(self, *shape, **changes):
        return self.tensor(*shape, storage=CONSTANT, **changes)

    def node(self, name, inputs, output, data=None):
        """Adds a node with these fields of its builtin data, or options in their order, and returns its output."""
        fields = b"\x00" if data is None else b"\x01" + struct.pack(f"<{len(data)}i", *data)
        indices = struct.pack(f"<B{len(inputs)}bBb", len(inputs), *inputs, 1, output)
        self.nodes.append(bytes([GRAPH_OPERATORS.index(name)]) + fields + indices)
        return output

    def content(self, outputs, kernels="", threads=1, switches=0, resized=()):
        """Returns the bytes of the graph."""
        marks = sum(1 << tensor for tensor in outputs)
        return (
            bytes([KERNELS.index(kernels), THREADS[threads], switches, len(self.tensors)])
            + b"".join(self.tensors)
            + struct.pack("<HB", marks, len(self.nodes))
            + b"".join(self.nodes)
            + struct.pack(f"<{len(resized)}i", *resized)
        )


def expansion(constants=None, units=8, **changes):
    """A feed-forward layer's: TILE, ADD, PRELU, the mean, and the signs of what is shifted."""
    constants = constants or {}
    graph, rows, channels, wide = Graph(), (1, 5, 3), 8, 64
    x, product = graph.tensor(*rows, channels), graph.tensor(*rows, wide)
    hidden = graph.node(
        "TILE", [x, graph.constant(4, dtype="int32", content=MULTIPLES, **constants)], graph.tensor(*rows, wide)
    )
    hidden = graph.node("ADD", [product, hidden], graph.tensor(*rows, wide), [0])
    hidden = graph.node("PRELU", [hidden, graph.constant(1, 1, wide, **constants)], graph.tensor(*rows, wide))
    filters = graph.constant(units, 1, 1, wide, content=EIGHTS if units == 8 else FOURS, **constants)
    mean = graph.node("CONV_2D", [hidden, filters, -1], graph.tensor(*rows, units), [0, 1, 1, 1, 1, 1])
    shifted = graph.node("ADD", [hidden, graph.constant(wide, **constants)], graph.tensor(*rows, wide), [0])
    bits = graph.node("LceQuantize", [shifted], graph.tensor(*rows, 2, dtype="int32"))
    return graph.content([mean, bits], **changes)


def shortcut(**changes):
    """What stands between two convolutions."""
    graph, shape = Graph(), (3, 7, 7, 33)
    x, y = graph.tensor(*shape), graph.tensor(*shape)
    filters, bias = graph.constant(1, 1, 1, 33), graph.constant(33)
    scaled = graph.node("DEPTHWISE_CONV_2D", [x, filters, bias], graph.tensor(*shape), [1, 1, 1, 1, 3])
    total = graph.node("ADD_N", [scaled, y, x], graph.tensor(*shape))
    half = graph.node("MUL", [graph.constant(), total], graph.tensor(*shape), [0])
    slope = graph.node("PRELU", [half, bias], graph.tensor(*shape))
    bits = graph.node("LceQuantize", [slope], graph.tensor(*shape[:-1], 2, dtype="int32"))
    return graph.content([slope, bits], **changes)


def kept_by_the_host(**changes):
    """A chain around a node that the delegate leaves to the host."""
    graph, shape = Graph(), (1, 2, 2, 32)
    x, shift = graph.tensor(*shape), graph.constant(32)
    first = graph.node("ADD", [x, shift], graph.tensor(*shape), [0])
    first = graph.node("PRELU", [first, shift], graph.tensor(*shape))
    rectified = graph.node("ADD", [first, first], graph.tensor(*shape), [1])
    last = graph.node("MUL", [rectified, first], graph.tensor(*shape), [0])
    last = graph.node("PRELU", [last, shift], graph.tensor(*shape))
    bits = graph.node("LceQuantize", [last], graph.tensor(1, 2, 2, 1, dtype="int32"))
    back = graph.node("LceDequantize", [bits], graph.tensor(*shape))
    return graph.content([back], **changes)


def product(depth, content, bias, **changes):
    """FULLY_CONNECTED of two activations."""
    graph = Graph()
    x, weights = graph.tensor(2, 9, depth, content=content), graph.tensor(5, depth, content=content)
    inputs = [x, weights, graph.constant(5)] if bias else [x, weights]
    output = graph.node("FULLY_CONNECTED", inputs, graph.tensor(2, 9, 5), [1 if bias else 0, 0, 1])
    bits = graph.node("LceQuantize", [x], graph.tensor(2, 9, words(depth), dtype="int32"))
    return graph.content([output, bits], **changes)


def transformer(height=2, width=2, channels=32, resized=(), **changes):
    """Fused layers between builtin nodes, and convolutions of their signs."""
    graph, shape, packed = Graph(), (1, height, width, channels), words(channels)
    x = graph.tensor(*shape)
    start = graph.node("ADD", [x, graph.constant(height, width, channels)], graph.tensor(*shape), [0])
    tables = [
        graph.constant(4, channels, packed, dtype="int32"),
        graph.constant(25, channels),
        graph.constant(1),
    ]
    attended = graph.node("BinaryVitAttention", [start, *tables], graph.tensor(*shape), [1, 1, 0])
    total = graph.node("ADD", [attended, start], graph.tensor(*shape), [0])
    mixed = graph.node("BinaryVitPooling", [total, graph.constant(6, channels)], graph.tensor(*shape), [1, 1])
    slope = graph.node("PRELU", [mixed, graph.constant(channels)], graph.tensor(*shape))
    bits = graph.node("LceQuantize", [slope], graph.tensor(*shape[:-1], packed, dtype="int32"))
    product = graph.node("FULLY_CONNECTED", [mixed, total], graph.tensor(height * width, height * width), [0, 0, 0])
    return graph.content([slope, bits, product], resized=resized, **changes)


def feed_forward_and_merging(**changes):
    graph, shape, channels, expansion = Graph(), (1, 2, 2, 32), 32, 2
    x = graph.tensor(*shape)
    start = graph.node("MUL", [x, graph.constant(channels)], graph.tensor(*shape), [0])
    tables = [
        graph.constant(expansion * channels, 1, dtype="int32"),
        graph.constant(4, expansion * channels),
        graph.constant(channels, expansion, dtype="int32"),
        graph.constant(7, channels),
    ]
    hidden = graph.node("BinaryVitFeedForward", [start, *tables, x], graph.tensor(*shape), [1])
    total = graph.node("ADD", [hidden, start], graph.tensor(*shape), [0])
    tables = [graph.constant(channels, 4, dtype="int32"), graph.constant(2, channels), graph.constant(3, channels)]
    merged = graph.node("BinaryVitPatchMerging", [total, *tables], graph.tensor(1, 1, 1, channels))
    last = graph.node("PRELU", [merged, graph.constant(channels)], graph.tensor(1, 1, 1, channels))
    return graph.content([total, last], **changes)


def head(graph, x, units):
    """The mean over positions and a dense layer; returns the logits."""
    axes = graph.constant(2, dtype="int32", content=AXES)
    pooled = graph.node("MEAN", [x, axes], graph.tensor(1, units), [0])
    inputs = [pooled, graph.constant(11, units), graph.constant(11)]
    return graph.node("FULLY_CONNECTED", inputs, graph.tensor(1, 11), [0, 0, 0])


def embedding(units=40, is_inner=False, **changes):
    """A patch embedding with position embeddings, a fused layer and a head; the embedding may be an output, too."""
    graph = Graph()
    inputs = [graph.tensor(1, 8, 18, 3), graph.constant(units, 2, 3, 3), graph.constant(units)]
    first = graph.node("CONV_2D", inputs, graph.tensor(1, 4, 6, units), [2, 3, 2, int(is_inner), 1, 1])
    x = graph.node("ADD", [first, graph.constant(4, 6, units)], graph.tensor(1, 4, 6, units), [0])
    x = graph.node("BinaryVitPooling", [x, graph.constant(6, units)], graph.tensor(1, 4, 6, units), [1, 1])
    return graph.content([head(graph, x, units), *[first] * is_inner], **changes)


def merging(units=40, is_inner=False, **changes):
    """The same of a patch merging."""
    graph = Graph()
    inputs = [graph.tensor(1, 4, 6, units), graph.constant(units, 4 * words(units), dtype="int32")]
    inputs += [graph.constant(2, units), graph.constant(3, units)]
    first = graph.node("BinaryVitPatchMerging", inputs, graph.tensor(1, 2, 3, units))
    x = graph.node("ADD", [graph.constant(1, 2, 3, units), first], graph.tensor(1, 2, 3, units), [0])
    return graph.content([head(graph, x, units), *[first] * is_inner], **changes)


def convolutions(**changes):
    """Bits from layer to layer, and a shortcut around them."""
    graph, shape, packed = Graph(), (1, 4, 4, 40), (1, 4, 4, 2)
    settings, bits = [40, 1, 1, 0, 1, 0, 1, 1], {"dtype": "int32"}
    x = graph.tensor(*shape)
    signs = graph.node("LceQuantize", [x], graph.tensor(*packed, **bits))
    kernel, threshold = graph.constant(40, 2, 2, 2, **bits), graph.constant(40, content=BITS, **bits)
    first = graph.node("LceBconv2d", [signs, kernel, -1, -1, threshold], graph.tensor(*packed, **bits), settings)
    pooled = graph.node("LceBMaxPool2d", [first], graph.tensor(*packed, **bits), [3, 3, 0, 1, 1])
    scale = graph.constant(40)
    inputs = [pooled, graph.constant(40, 1, 1, 2, **bits), scale, graph.constant(40), -1]
    last = graph.node("LceBconv2d", inputs, graph.tensor(*shape), settings)
    total = graph.node("ADD", [last, x], graph.tensor(*shape), [0])
    total = graph.node("PRELU", [total, scale], graph.tensor(*shape))
    return graph.content([total], **changes)


def graph_seeds():
    """Returns graphs by name that run."""
    again = {"switches": RESIZES | RUNS_TWICE | PROFILES}
    found = {
        "expansion": expansion(),
        "expansion_fours": expansion(units=16),
        "expansion_again": expansion(threads=3, switches=RUNS_TWICE | KEEPS_ORDER | RECOMMENDS_THREADS),
        "short_constants": expansion({"more": -4}),
        "unaligned_constants": expansion({"offset": 2}),
        "shortcut": shortcut(),
        "shortcut_threads": shortcut(threads=3, switches=RUNS_TWICE),
        "shortcut_resized": shortcut(threads=2, **again, resized=(1, 19, 7, 33)),
        "kept_by_the_host": kept_by_the_host(),
        "kept_by_the_host_in_order": kept_by_the_host(threads=3, switches=KEEPS_ORDER),
        "product_pairs": product(64, PAIR, False),
        "product_ragged": product(43, PAIR, True, threads=2),
        "product_reals": product(21, REALS, True, **again, resized=(4, 2, 21)),
        "product_rows": product(64, PAIR, False, threads=3, **again, resized=(1, 70, 64)),
        "transformer": transformer(threads=3, switches=RUNS_TWICE),
        "transformer_ragged": transformer(2, 3, 20, switches=KEEPS_ORDER | PROFILES),
        "feed_forward_and_merging": feed_forward_and_merging(threads=2, **again, resized=(1, 4, 2, 32)),
        "convolutions": convolutions(threads=2, **again, resized=(2, 3, 5, 40)),
        "embedding": embedding(threads=3, switches=RUNS_TWICE | PROFILES),
        "embedding_inner": embedding(32, True, switches=KEEPS_ORDER),
        "merging": merging(32, threads=2, **again, resized=(2, 4, 6, 32)),
        "merging_inner": merging(64, True, switches=RUNS_TWICE),
    }
    for kernels in KERNELS[1:]:
        found |= {
            f"expansion_{kernels}": expansion(kernels=kernels),
            f"expansion_fours_{kernels}": expansion(units=16, kernels=kernels),
            f"product_{kernels}": product(50, PAIR, True, kernels=kernels),
            f"transformer_{kernels}": transformer(kernels=kernels),
            f"feed_forward_and_merging_{kernels}": feed_forward_and_merging(kernels=kernels),
            f"convolutions_{kernels}": convolutions(kernels=kernels),
            f"embedding_{kernels}": embedding(33, kernels=kernels),
            f"merging_{kernels}": merging(33, kernels=kernels),
        }
    return found


def hostile():
    """Returns nodes by name, and what the operator says: a file with them gets past LiteRT, or past some hosts."""
    x, merged = (1, 4, 4, 40), tensor((1, 2, 2, 80))
    kernel, parameters = constant((80, 8), "int32"), constant((2, 40))

    def merging(inputs, output=merged, **changes):
        return node("BinaryVitPatchMerging", inputs, output, **changes)

    def merging_with(table, image=None):
        return merging([image or tensor(x), kernel, parameters, table])

    bits, no_tensor, left_out = tensor((1, 1, 1, 1), "int32"), bytes([NO_TENSOR]), bytes([LEFT_OUT])
    return {
        "no_inputs_merging": (merging([]), "takes 4 inputs and 1 outputs, but the node has 0 and 1"),
        "no_inputs_pooling": (
            node("BinaryVitPooling", [], tensor(x), vertical=1, residual=0),
            "takes 2 inputs and 1 outputs, but the node has 0 and 1",
        ),
        "no_output": (merging([tensor(x)] * 4, left_out, switches=PROFILES), "output 0 is no tensor of the model"),
        "unknown_output": (
            merging([tensor(x)] * 4, no_tensor, switches=PROFILES),
            "output 0 is no tensor of the model",
        ),
        "unknown_input": (merging([no_tensor, kernel, parameters, constant((3, 80))]), "the input is missing"),
        "constant_output": (
            node("LceQuantize", [tensor((1, 40))], constant((1, 2), "int32")),
            "output 0 is a constant",
        ),
        "output_is_input": (
            node(
                "LceBMaxPool2d",
                [tensor((1, 4, 4, 1), "int32")],
                bytes([FIRST_INPUT]),
                filter_height=2,
                filter_width=2,
                padding=0,
                stride_height=1,
                stride_width=1,
            ),
            "output 0 is input 0 as well",
        ),
        "short_table": (
            merging_with(constant((3, 80), more=-4)),
            "the outputs has 956 bytes of data, but its shape needs 960",
        ),
        "short_image": (
            merging_with(constant((3, 80)), constant(x, more=-1)),
            "the input has 2559 bytes of data, but its shape needs 2560",
        ),
        "short_bits": (
            node("LceDequantize", [constant((2, 2), "int32", more=-8)], tensor((1, 40))),
            "the input has 8 bytes of data, but its shape needs 16",
        ),
        "unaligned_table": (
            merging_with(constant((3, 80), offset=2)),
            "the data of the outputs must begin at a multiple of 4 bytes",
        ),
        "unaligned_image": (
            node("LceQuantize", [constant((1, 40), offset=3)], bits),
            "the data of the input must begin at a multiple of 4 bytes",
        ),
        "overflowing_image": (
            node("LceQuantize", [tensor((2**31 - 1, 2**31 - 1, 2**31 - 1, 32))], bits),
            "output 0 has more than 2^31 elements",
        ),
        "map_without_memory": (
            attention((1, 2**13, 2**13, 40)),
            "needs more memory than there is, or more than 256 MiB in one piece",
        ),
        "negative_size": (
            node("LceQuantize", [tensor((-1, 40))], bits),
            "every dimension of the input must be 1 or more, but dimension 0 is -1",
        ),
        "ten_dimensions": (
            node("LceQuantize", [tensor((1,) * 9)], bits),
            "the input must have at most 8 dimensions, but has 9",
        ),
    }


if __name__ == "__main__":
    nodes = seeds() | {name: content for name, (content, _) in hostile().items()}
    for target, contents in {"operator": nodes, "graph": graph_seeds()}.items():
        folder = Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
