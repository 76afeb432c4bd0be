"""fold: gives every per-channel affine of a graph the cheapest place.

One sweep from the inputs to the outputs. At each node the affines on its inputs go into its constants or through to its
outputs where they can; what its readers then ask for is written into the constants of what computes it where possible.
An affine that finds no such place becomes an operation, one for all readers that ask for the same.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeGuard

import numpy as np

from keras_binaryvit.deploy import lce_layers, runtime_layers
from keras_binaryvit.deploy.graph import SEPARATOR, Edge, Graph, Input, Node

_PRODUCTS = (lce_layers.Convolution, lce_layers.Dense, lce_layers.DepthwiseConvolution, lce_layers.Affine)
# Their kernel holds one value for each channel.
_CHANNELWISE = (lce_layers.Affine, lce_layers.FloatSign)
_SUMS = (
    lce_layers.Add,
    lce_layers.AddInFront,
    lce_layers.AveragePooling,
    lce_layers.GlobalAveragePooling,
    lce_layers.Upsampling,
)
_REARRANGED: dict[type, Callable[[np.ndarray, dict], np.ndarray]] = {
    lce_layers.Tile: lambda shift, options: np.tile(shift, options["copies"]),
    lce_layers.GroupMean: lambda shift, options: np.reshape(shift, (-1, options["size"])).mean(-1),
}


def fold(graph: Graph) -> Graph:
    """Returns `graph` with no affine left on any edge, in as few operations as possible. `graph` is used up."""
    return _Folding(graph).run()


class _Folding:
    def __init__(self, graph: Graph):
        read = {edge.node for edge in graph.outputs}
        for node in reversed(graph.nodes):
            if node in read:
                read |= {edge.node for edge in node.inputs}
        graph.nodes = [node for node in graph.nodes if node in read or node.kind is Input]
        self._graph = graph
        self._done: list[Node] = []
        # What reads each node, with the reading node; `None` reads the outputs.
        self._reads: dict[Node, list[tuple[Edge, Node | None]]] = {node: [] for node in graph.nodes}
        for node in graph.nodes:
            for edge in node.inputs:
                self._reads[edge.node].append((edge, node))
        for edge in graph.outputs:
            self._reads[edge.node].append((edge, None))

    def run(self):
        for node in self._graph.nodes:
            self._take_in(node)
            self._done.append(node)
            self._center(node)
            self._give_scales(node)
            self._give_shifts(node)
        for node in self._done:
            if _pads_bits_with_zeros(node) and {getattr(reader, "kind", None) for _, reader in self._reads[node]} == {
                lce_layers.Sign
            }:
                _compare_integers(node)
        return dataclasses.replace(self._graph, nodes=self._done)

    def _take_in(self, node):
        """Moves the affines on the inputs of `node` into its constants or to its readers."""
        for edge in node.inputs:
            scale, shift = edge.scale, edge.shift
            if is_fused(node.kind):
                if _is_added(edge, node):
                    # By now `edge` has no scale: what it reads was scaled for it.
                    node.kind.put_after(node.constants, Edge(node, shift=shift))
                if edge is node.inputs[0]:
                    node.kind.put_before(node.constants, edge)
                edge.scale, edge.shift = 1.0, 0.0
            elif takes_affine(node) or (is_padded(node) and not edge.has_shift()):
                _put_before(node, scale, shift)
                edge.scale, edge.shift = 1.0, 0.0
            elif node.kind is lce_layers.GlobalAveragePooling:
                self._to_readers(node, scale, shift)
                edge.scale, edge.shift = 1.0, 0.0
            elif passes_shift(node):
                if node.kind in _REARRANGED:
                    channels = node.inputs[0].shape[-1:]
                    shift = _REARRANGED[node.kind](np.broadcast_to(shift, channels), node.options)
                self._to_readers(node, 1.0, shift)
                edge.shift = 0.0
        if node.kind is lce_layers.Add:
            self._add_through_kernel(node)

    def _to_readers(self, node, scale, shift):
        for edge, _ in self._reads[node]:
            edge.scale, edge.shift = edge.scale * scale, edge.scale * shift + edge.shift

    def _add_through_kernel(self, node):
        """Turns x + depthwise(x) into a depthwise convolution whose kernel has 1 more in its middle."""
        for edge in node.inputs:
            reader = edge.node
            if reader.kind is not lce_layers.DepthwiseConvolution or len(self._reads[reader]) > 1:
                continue
            source = reader.inputs[0].node
            same = [e for e in node.inputs if e.node is source and not e.has_scale()]
            if same and len(node.inputs) > 2:
                height, width = reader.options["kernel_size"]
                reader.constants["kernel"][height // 2, width // 2] += 1
                node.inputs.remove(same[0])
                self._reads[source] = [read for read in self._reads[source] if read[0] is not same[0]]
                return

    def _center(self, node):
        """Moves `node` such that a padded convolution that wants `scale * node + shift` needs a scale only.

        Zeros around a map can't be shifted, but the map can be, where all its other readers make up for it.
        """
        for edge, reader in self._reads[node]:
            if not is_padded(reader) or not edge.has_shift() or not np.all(np.asarray(edge.scale) != 0):
                continue
            shift = edge.shift / edge.scale
            # A channel that is scaled by almost nothing would be moved so far that its digits are lost.
            moderate = np.abs(shift) <= 64 * np.median(np.abs(1 / np.asarray(edge.scale)))
            if np.all(moderate) and self._shift_tensor(node, shift):
                for other, _ in self._reads[node]:
                    other.shift = other.shift - other.scale * shift
                edge.shift = 0.0

    def _give_scales(self, node):
        """Makes a tensor for each scale that readers of `node` ask for, unless they take the scale in themselves."""
        reads = [(e, r) for e, r in self._reads[node] if not _takes_any_scale(e, r)]
        groups = _grouped(reads, "scale")
        if len(groups) == 1 and len(reads) == len(self._reads[node]) and scales_outputs(node):
            _scale_outputs(node, groups[0][0][0].scale)
            for edge, _ in reads:
                edge.scale = 1.0
            return
        for group in groups:
            if group[0][0].has_scale():
                self._insert(node, group, "scale")

    def _give_shifts(self, node):
        """Makes a tensor for each shift that readers of `node` ask for, unless they take the shift in themselves."""
        groups = self._shift_groups(node)
        if not groups:
            return
        # The one that most ask for costs nothing if it can become a part of the tensor itself.
        shift = np.asarray(max(groups, key=len)[0][0].shift)
        centered = any(is_padded(reader) and edge.has_scale() for edge, reader in self._reads[node])
        if np.any(shift != 0) and not centered and self._shift_tensor(node, shift):
            for edge, reader in self._reads[node]:
                edge.shift = edge.shift - edge.scale * shift
                if reader is not None and reader.kind is lce_layers.Affine:
                    self._take_in(reader)  # inserted for this node: its turn doesn't come
        for group in self._shift_groups(node):
            if group[0][0].has_shift():
                self._insert(node, group, "shift")

    def _shift_groups(self, node):
        def takes_any(reader):
            return reader is not None and (takes_affine(reader) or passes_shift(reader) or is_fused(reader.kind))

        return _grouped([(edge, reader) for edge, reader in self._reads[node] if not takes_any(reader)], "shift")

    def _shift_tensor(self, node, shift):
        """Adds `shift` to what `node` computes, if that costs nothing, and says whether it did."""
        if node.kind in _SUMS:
            return any(
                len(self._reads[edge.node]) == 1 and self._shift_tensor(edge.node, shift) for edge in node.inputs
            )
        if is_fused(node.kind) and node.kind.output_shift:
            node.kind.put_after(node.constants, Edge(node, shift=shift))
        elif node.kind in _PRODUCTS or node.kind is lce_layers.AddConstant:
            name = "bias" if node.kind in _PRODUCTS else "constant"
            node.constants[name] = node.constants[name] + shift
        else:
            return False
        return True

    def _insert(self, node, group, what):
        value = np.broadcast_to(getattr(group[0][0], what), node.shape[-1:])
        kind: type = lce_layers.AddConstant
        constants, options = {"constant": value}, {"constant_shape": value.shape}
        if what == "scale":
            kind, constants, options = lce_layers.Affine, {"kernel": value, "bias": np.zeros(value.shape)}, {}
        readers = [reader for _, reader in group]
        origin = readers[0].name if len(readers) == 1 and readers[0] is not None else node.name
        inserted = Node(kind, [Edge(node)], node.shape, f"{origin}{SEPARATOR}{what}", constants, options)
        self._reads[node] = [read for read in self._reads[node] if read not in group] + [(inserted.inputs[0], inserted)]
        self._reads[inserted] = group
        for edge, _ in group:
            edge.node = inserted
            setattr(edge, what, 1.0 if what == "scale" else 0.0)
        self._done.append(inserted)
        if what == "scale":
            self._give_shifts(inserted)


def takes_affine(node: Node) -> bool:
    """Whether an affine of the inputs can become a part of the constants of `node`."""
    if node.kind is lce_layers.FloatSign:
        return True
    if node.kind not in _PRODUCTS or node.kind is lce_layers.DepthwiseConvolution or node.options.get("binary", False):
        return False
    # Zeros around a map are not shifted.
    return node.options.get("padding", "valid") == "valid"


def passes_shift(node: Node) -> bool:
    """Whether a shift of the inputs is a shift of the output."""
    return node.kind in _SUMS or node.kind in _REARRANGED or node.kind is lce_layers.AddConstant


def is_padded(node: Node | None) -> bool:
    """Whether `node` is a real convolution that reads zeros around its map: it takes in a scale but no shift."""
    if node is None or node.kind not in (lce_layers.Convolution, lce_layers.DepthwiseConvolution):
        return False
    return not node.options.get("binary", False) and not takes_affine(node) and node.options.get("pad_values", 0) == 0


def _pads_bits_with_zeros(node: Node) -> bool:
    options = node.options
    padded = options.get("padding") == "same" and not options.get("pad_values")
    return node.kind is lce_layers.Convolution and padded and options.get("binary", False)


def is_fused(kind: type) -> TypeGuard[type[runtime_layers.FusedLayer]]:
    """Whether `kind` is an operator of binaryvit-runtime, whose constants take in affines on either side."""
    return issubclass(kind, runtime_layers.FusedLayer)


def scales_outputs(node: Node) -> bool:
    """Whether the constants of `node` can scale all that it computes."""
    if is_fused(node.kind):
        return node.kind.output_scale is not None and not node.options["residual"]
    return node.kind in _PRODUCTS


def _is_added(edge, node):
    """Whether the fused operator `node` adds what `edge` reads to its output."""
    return bool(node.options.get("residual")) and edge is node.inputs[-1]


def _takes_any_scale(edge, reader):
    if reader is None:
        return False
    if is_fused(reader.kind):
        return not _is_added(edge, reader)
    if is_padded(reader):
        return not edge.has_shift()
    return takes_affine(reader) or reader.kind is lce_layers.GlobalAveragePooling


def _put_before(node, scale, shift):
    kernel = node.constants["kernel"]
    added = kernel * _by_input_and_filter(node, shift)
    if node.kind not in _CHANNELWISE:
        added = added.reshape(-1, node.shape[-1]).sum(0) * node.constants.get("scale", 1.0)
    node.constants["bias"] = node.constants["bias"] + added
    node.constants["kernel"] = kernel * _by_input_and_filter(node, scale)


def _by_input_and_filter(node, values):
    """Returns values for each input channel in a shape that fits the kernel of `node`."""
    if node.kind in _CHANNELWISE:
        return values
    *_, channels, filters = node.constants["kernel"].shape
    groups = node.options.get("groups", 1)
    values = np.broadcast_to(values, (channels * groups,)).reshape(groups, channels)
    # The filters of a group see its channels only.
    return np.repeat(values, filters // groups, axis=0).T


def _scale_outputs(node, scale):
    if is_fused(node.kind):
        node.kind.put_after(node.constants, Edge(node, scale))
        return
    name = "scale" if "scale" in node.constants else "kernel"
    depthwise = node.kind is lce_layers.DepthwiseConvolution  # the channels aren't its kernel's last axis
    factor = np.broadcast_to(scale, node.shape[-1:])[:, None] if depthwise else scale
    node.constants[name] = node.constants[name] * factor
    node.constants["bias"] = node.constants["bias"] * scale


def _compare_integers(node):
    """Lets a binary convolution that only signs read give integers and a half: no rounding changes their signs.

    LCE's interpreter makes up for zeros around a map after the bias, where 0 may become less.
    """
    scale, bias = node.constants["scale"], node.constants["bias"]
    scale, bias = np.broadcast_arrays(np.float64(scale), np.float64(bias))
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold = -bias / np.abs(scale)
    least = np.ceil(threshold - 1e-9 * np.abs(threshold))  # a sum that is the threshold gives +1
    node.constants["scale"] = np.sign(scale)
    node.constants["bias"] = np.where(scale == 0, np.where(bias >= 0, 0.5, -0.5), 0.5 - least)


def _grouped(reads, what):
    """Returns lists of the reads that have the same scale, or shift."""
    groups: dict[tuple, list] = {}
    for read in reads:
        value = np.asarray(getattr(read[0], what), float) + 0.0  # of zeros the one without a sign
        groups.setdefault((value.shape, value.tobytes()), []).append(read)
    return list(groups.values())
