"""How much memory a loaded session keeps for one tied weight, measured.

The nodes that use the weight are cut out into a model of their own over the same bytes of the same
file, loaded in a fresh process as edgetie loads models, and run once: what the process then holds
more than before, divided by the weight's size, is the number of copies in memory.
"""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.matching import attribute_ints, only_user, producer
from edgetie.graph.operators import operator
from edgetie.providers.environments import ask
from edgetie.ties.groups import TieGroup, nodes_using

MIN_BYTES = 8 << 20
"""Of smaller weights the measurement would show the session, not the weight."""

_FORM_CHANGES = {"Transpose", "Reshape", "Cast", "Identity", "DequantizeLinear"}


@dataclass(frozen=True)
class TieMemory:
    """Resident bytes kept for a weight: private to the process, and pages of the file."""

    anonymous: int
    file_mapped: int


def measure_tie(model: ir.Model, group: TieGroup, provider: str) -> TieMemory | None:
    """Measure one tied weight of ``model`` (loaded from a file, weights in external data).

    Returns:
        ``None`` elsewhere than on Linux, and for a weight that is too small, not in external
        data, or used in a subgraph or by an operator whose inputs cannot be made up.

    Raises:
        BundleError: if the measuring process fails.
    """
    tensor = model.graph.initializers[group.name].const_value
    if group.bytes < MIN_BYTES or not isinstance(tensor, ir.ExternalTensor):
        return None
    if sys.platform != "linux":
        return None  # no other system tells which pages are resident
    cut = _cut_out(model, group)
    if cut is None:
        return None
    piece, feeds = cut
    request = {
        "model": base64.b64encode(ir.serde.serialize_model(piece).SerializeToString()).decode(),
        "folder": str(Path(tensor.base_dir).resolve()),
        "data": str((Path(tensor.base_dir) / tensor.location).resolve()),
        "feeds": feeds,
    }
    return TieMemory(**ask(provider, "edgetie.harness.ties.tie_memory", request, group.name))


def _cut_out(model: ir.Model, group: TieGroup) -> tuple[ir.Model, dict[str, Any]] | None:
    """The nodes that use the weight, their other inputs open; and shapes and dtypes to feed."""
    piece = _Piece()
    users = nodes_using(model, group.name)
    if any(node.graph is not model.graph for node in users):
        return None  # what a branch does with it is not to be seen outside
    results = [piece.user(node) for node in _products(users)]
    if not results or any(result is None for result in results):
        return None
    graph = ir.Graph(
        piece.inputs,
        [result for result in results if result is not None],
        nodes=piece.nodes,
        initializers=list(piece.constants.values()),
        opset_imports=dict(model.graph.opset_imports),
        name="tied_weight",
    )
    return ir.Model(graph, ir_version=model.ir_version), piece.feeds


def _products(users: list[ir.Node]) -> list[ir.Node]:
    """Users, and in the place of each DequantizeLinear, whose result a session need not keep, what
    reads that.
    """
    found: dict[ir.Node, None] = {}
    for node in users:
        if operator(node) in _FORM_CHANGES:
            found |= dict.fromkeys(_products([user for user, _ in node.outputs[0].uses()]))
        else:
            found[node] = None
    return list(found)


class _Piece:
    """Nodes of a graph copied into one of their own.

    Attributes:
        inputs: of the new graph.
        feeds: what to feed for each.
        nodes: the copies, in order.
        constants: copied initializers, by the old ones.
    """

    def __init__(self) -> None:
        self.inputs: list[ir.Value] = []
        self.feeds: dict[str, Any] = {}
        self.nodes: list[ir.Node] = []
        self.constants: dict[ir.Value, ir.Value] = {}

    def user(self, node: ir.Node) -> ir.Value | None:
        """Copy a node that reads the weight, and what rounds its result; ``None`` if its inputs
        cannot be made up.
        """
        result = self._copy(node)
        for op_type in ("QuantizeLinear", "DequantizeLinear"):
            after = only_user(node.outputs[0], op_type)
            if result is None or after is None or not _have_constants(after):
                break
            result, node = self._put(after, [result, *map(self._constant, after.inputs[1:])]), after
        return result

    def _copy(self, node: ir.Node) -> ir.Value | None:
        taken: list[ir.Value | None] = []
        for index, value in enumerate(node.inputs):
            made = value.producer() if value is not None else None
            if value is None or value.const_value is not None:
                taken.append(self._constant(value))
            elif made is not None and operator(made) in _FORM_CHANGES and _from_constant(made):
                inner = self._copy(made)
                if inner is None:
                    return None
                taken.append(inner)
            else:
                shape = _shape(node, index)
                if shape is None:
                    return None
                taken.append(self._open(value, shape, _dtype(node, index, value)))
        return self._put(node, taken)

    def _open(self, value: ir.Value, shape: list[int], kind: ir.DataType) -> ir.Value:
        """An input in the place of ``value``, rounded as that is."""
        after = producer(value, "DequantizeLinear")
        before = producer(after.inputs[0], "QuantizeLinear") if after is not None else None
        name = f"in.{len(self.inputs)}"
        self.inputs.append(ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind)))
        self.feeds[name] = {"shape": shape, "dtype": kind.numpy().name}
        made = self.inputs[-1]
        if after is not None and before is not None and _have_constants(before, after):
            for node in (before, after):
                made = self._put(node, [made, *map(self._constant, node.inputs[1:])])
        return made

    def _constant(self, value: ir.Value | None) -> ir.Value | None:
        if value is not None and value not in self.constants:
            self.constants[value] = ir.Value(
                name=value.name, shape=value.shape, type=value.type, const_value=value.const_value
            )
        return None if value is None else self.constants[value]

    def _put(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Value:
        made = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=1
        )
        made.outputs[0].name = f"out.{len(self.nodes)}"
        made.outputs[0].type = node.outputs[0].type
        self.nodes.append(made)
        return made.outputs[0]


def _from_constant(node: ir.Node) -> bool:
    """Whether a node changes the form of a constant, perhaps behind others that do."""
    value = node.inputs[0]
    made = value.producer() if value is not None else None
    if value is None or value.const_value is not None:
        return value is not None
    return made is not None and operator(made) in _FORM_CHANGES and _from_constant(made)


def _have_constants(*nodes: ir.Node) -> bool:
    """Whether all inputs of nodes but the first are constants."""
    others = [value for node in nodes for value in node.inputs[1:]]
    return all(value is None or value.const_value is not None for value in others)


def _dtype(node: ir.Node, index: int, value: ir.Value) -> ir.DataType:
    if operator(node).startswith("Gather"):
        return ir.DataType.INT64
    if operator(node).startswith("MatMulInteger"):
        return value.dtype or (ir.DataType.INT8 if index % 2 else ir.DataType.UINT8)
    constants = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    half = any(tensor.dtype == ir.DataType.FLOAT16 for tensor in constants)
    return ir.DataType.FLOAT16 if half else ir.DataType.FLOAT


def _shape(node: ir.Node, index: int) -> list[int] | None:
    """A shape that one row of activations, or one token, has at this input."""
    if operator(node) in ("Gather", "GatherBlockQuantized"):
        return [1, 1]
    if operator(node).startswith("MatMulInteger") and index > 1:
        return []  # a zero point
    if operator(node) == "MatMulNBits":
        return [1, node.attributes["K"].as_int()]
    other = node.inputs[1 - index] if index < 2 else None
    if (
        operator(node)
        not in ("MatMul", "MatMulInteger", "MatMulIntegerToFloat", "Gemm", "FusedMatMul")
        or other is None
    ):
        return None
    known = _known_shape(other)
    if known is None or len(known) < 2 or any(size != 1 for size in known[:-2]):
        return None
    rows, columns = known[-2:]
    swapped = "transB" in node.attributes and node.attributes["transB"].as_int() != 0
    inner = columns if index == 1 or swapped else rows
    if not isinstance(inner, int):
        return None
    return [inner, 1] if index == 1 else [1, inner]


def _known_shape(value: ir.Value) -> list[Any] | None:
    """A value's shape, told from that of a constant it is made of if need be."""
    if value.shape is not None:
        return list(value.shape)
    node = value.producer()
    if node is None or operator(node) not in _FORM_CHANGES or node.inputs[0] is None:
        return None
    before = _known_shape(node.inputs[0])
    if operator(node) == "Transpose" and before is not None:
        return [before[axis] for axis in attribute_ints(node, "perm") or range(len(before))[::-1]]
    return None if operator(node) == "Reshape" else before


def _resident(path: str) -> int:
    """Resident bytes of this process's mappings of a file."""
    total, counting = 0, False
    with Path("/proc/self/smaps").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(None, 5)
            if "-" in fields[0] and not fields[0].endswith(":"):
                counting = len(fields) == 6 and fields[5].rstrip("\n") == path
            elif counting and fields[0] == "Rss:":
                total += int(fields[1]) * 1024
    return total


def _worker() -> None:
    import onnxruntime

    from edgetie.providers.registry import resolve
    from edgetie.runtime.memory import read_memory, release_file_pages, release_heap
    from edgetie.runtime.session import session_options

    request = json.load(sys.stdin)
    row = resolve(request["provider"])
    options = session_options(1)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", request["folder"]
    )
    model = base64.b64decode(request["model"])
    release_heap()  # what packing leaves behind for later is no copy of the weight
    before = read_memory()
    session = onnxruntime.InferenceSession(
        model, options, providers=[(row.ort_name, dict(row.options))], enable_fallback=0
    )
    release_file_pages([request["data"]])
    feeds = {
        name: np.zeros(feed["shape"], feed["dtype"]) for name, feed in request["feeds"].items()
    }
    session.run(None, feeds)
    release_heap()
    after = read_memory()
    answer = {
        "anonymous": after.anonymous - before.anonymous,
        "file_mapped": _resident(request["data"]),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    _worker()
