"""Measure how much memory a loaded session keeps for one tied weight.

The nodes that use the weight become a separate model over the same bytes of the same file. A fresh
process loads it as edgetie loads models and runs it once. The growth of the process's memory,
divided by the weight's size, is the number of copies in memory.
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
from edgetie.providers.json_worker import ask_worker
from edgetie.ties.groups import TieGroup, nodes_using

MIN_BYTES = 8 << 20
"""For smaller weights the measurement would show the session, not the weight."""

_ARRANGING = {"Transpose", "Reshape", "Cast", "Identity", "DequantizeLinear"}
"""Operators that only change how a weight is stored."""


@dataclass(frozen=True)
class TieMemory:
    """Resident bytes kept for a weight: private to the process, and pages of the file."""

    anonymous: int
    file_mapped: int


def measure_tie(model: ir.Model, group: TieGroup, provider: str) -> TieMemory | None:
    """Measure one tied weight of ``model`` (loaded from a file, weights in external data).

    Returns:
        ``None`` on other systems than Linux, and for a weight that is too small, not in external
        data, or used in a subgraph or by an operator whose inputs cannot be made up.

    Raises:
        BundleError: if the measuring process fails.
    """
    tensor = model.graph.initializers[group.name].const_value
    if group.bytes < MIN_BYTES or not isinstance(tensor, ir.ExternalTensor):
        return None
    if sys.platform != "linux":
        return None  # no other system reports which pages are resident
    extracted = _extract(model, group)
    if extracted is None:
        return None
    subgraph, feeds = extracted
    request = {
        "model": base64.b64encode(ir.serde.serialize_model(subgraph).SerializeToString()).decode(),
        "folder": str(Path(tensor.base_dir).resolve()),
        "data": str((Path(tensor.base_dir) / tensor.location).resolve()),
        "feeds": feeds,
    }
    return TieMemory(**ask_worker(provider, "edgetie.harness.ties.tie_memory", request, group.name))


def _extract(model: ir.Model, group: TieGroup) -> tuple[ir.Model, dict[str, Any]] | None:
    """Copy the nodes that use the weight, with their other inputs open.

    Returns:
        The model, and shapes and dtypes to feed; ``None`` if an input cannot be made up.
    """
    nodes = nodes_using(model, group.name)
    if any(node.graph is not model.graph for node in nodes):
        return None  # a branch runs only if its condition holds
    subgraph = _Subgraph()
    results = [subgraph.add_user(node) for node in _readers(nodes)]
    outputs = [result for result in results if result is not None]
    if not outputs or len(outputs) < len(results):
        return None
    graph = ir.Graph(
        subgraph.inputs,
        outputs,
        nodes=subgraph.nodes,
        initializers=list(subgraph.constants.values()),
        opset_imports=dict(model.graph.opset_imports),
        name="tied_weight",
    )
    return ir.Model(graph, ir_version=model.ir_version), subgraph.feeds


def _readers(nodes: list[ir.Node]) -> list[ir.Node]:
    """Replace nodes that only rearrange the weight by the nodes that read their result.

    A session need not keep the result of a DequantizeLinear, for example.
    """
    readers: dict[ir.Node, None] = {}
    for node in nodes:
        if operator(node) in _ARRANGING:
            readers |= dict.fromkeys(_readers([user for user, _ in node.outputs[0].uses()]))
        else:
            readers[node] = None
    return list(readers)


class _Subgraph:
    """Copies of nodes, with new inputs. The same value can be an output and a new input.

    Attributes:
        inputs: of the new graph.
        feeds: shape and dtype to feed for each.
        nodes: the copies, in order.
        constants: copies of initializers, by the original ones.
    """

    def __init__(self) -> None:
        self.inputs: list[ir.Value] = []
        self.feeds: dict[str, Any] = {}
        self.nodes: list[ir.Node] = []
        self.constants: dict[ir.Value, ir.Value] = {}

    def add_user(self, node: ir.Node) -> ir.Value | None:
        """Copy a node that reads the weight, and the quantization of its result.

        Returns:
            The result; ``None`` if an input cannot be made up.
        """
        result = self._copy(node)
        for op_type in ("QuantizeLinear", "DequantizeLinear"):
            after = only_user(node.outputs[0], op_type)
            if result is None or after is None or not _have_constants(after):
                break
            result = self._add(after, [result, *map(self._constant, after.inputs[1:])])
            node = after
        return result

    def _copy(self, node: ir.Node) -> ir.Value | None:
        inputs: list[ir.Value | None] = []
        for index, value in enumerate(node.inputs):
            before = value.producer() if value is not None else None
            if value is None or value.const_value is not None:
                inputs.append(self._constant(value))
                continue
            if before is not None and operator(before) in _ARRANGING and _from_constant(before):
                copy = self._copy(before)
            else:
                copy = self._open(node, index, value)
            if copy is None:
                return None
            inputs.append(copy)
        return self._add(node, inputs)

    def _open(self, node: ir.Node, index: int, value: ir.Value) -> ir.Value | None:
        """Add an input in the place of ``value``, quantized like it; ``None`` without a shape."""
        shape, dtype = _shape(node, index), _dtype(node, index, value)
        if shape is None:
            return None
        name = f"in.{len(self.inputs)}"
        result = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.inputs.append(result)
        self.feeds[name] = {"shape": shape, "dtype": dtype.numpy().name}
        after = producer(value, "DequantizeLinear")
        before = producer(after.inputs[0], "QuantizeLinear") if after is not None else None
        if after is not None and before is not None and _have_constants(before, after):
            for step in (before, after):
                result = self._add(step, [result, *map(self._constant, step.inputs[1:])])
        return result

    def _constant(self, value: ir.Value | None) -> ir.Value | None:
        if value is not None and value not in self.constants:
            self.constants[value] = ir.Value(
                name=value.name, shape=value.shape, type=value.type, const_value=value.const_value
            )
        return None if value is None else self.constants[value]

    def _add(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.Value:
        copy = ir.Node(
            node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=1
        )
        copy.outputs[0].name = f"out.{len(self.nodes)}"
        copy.outputs[0].type = node.outputs[0].type
        self.nodes.append(copy)
        return copy.outputs[0]


def _from_constant(node: ir.Node) -> bool:
    """Whether a node rearranges a constant, perhaps after others that do."""
    value = node.inputs[0]
    if value is None or value.const_value is not None:
        return value is not None
    before = value.producer()
    return before is not None and operator(before) in _ARRANGING and _from_constant(before)


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
    is_float16 = any(tensor.dtype == ir.DataType.FLOAT16 for tensor in constants)
    return ir.DataType.FLOAT16 if is_float16 else ir.DataType.FLOAT


def _shape(node: ir.Node, index: int) -> list[int] | None:
    """Return the shape of one token, or of its activations, at this input."""
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
    shape = _inferred_shape(other)
    if shape is None or len(shape) < 2 or any(size != 1 for size in shape[:-2]):
        return None
    is_transposed = "transB" in node.attributes and node.attributes["transB"].as_int() != 0
    inner = shape[-1] if index == 1 or is_transposed else shape[-2]
    if not isinstance(inner, int):
        return None
    return [inner, 1] if index == 1 else [1, inner]


def _inferred_shape(value: ir.Value) -> list[Any] | None:
    """Return a value's shape, inferred from the constant that it rearranges if necessary."""
    if value.shape is not None:
        return list(value.shape)
    node = value.producer()
    if node is None or operator(node) not in _ARRANGING or node.inputs[0] is None:
        return None
    before = _inferred_shape(node.inputs[0])
    if operator(node) == "Transpose" and before is not None:
        return [before[axis] for axis in attribute_ints(node, "perm") or range(len(before))[::-1]]
    return None if operator(node) == "Reshape" else before


def _worker() -> None:
    import onnxruntime

    from edgetie.providers.registry import require_provider
    from edgetie.runtime.memory import MappedFiles, read_memory, release_file_pages, release_heap
    from edgetie.runtime.session import session_options

    request = json.load(sys.stdin)
    provider = require_provider(request["provider"])
    options = session_options(1)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", request["folder"]
    )
    model = base64.b64decode(request["model"])
    release_heap()
    before = read_memory()
    session = onnxruntime.InferenceSession(
        model, options, providers=[(provider.ort_name, dict(provider.options))], enable_fallback=0
    )
    release_file_pages([request["data"]])
    feeds = {
        name: np.zeros(feed["shape"], feed["dtype"]) for name, feed in request["feeds"].items()
    }
    session.run(None, feeds)
    release_heap()  # free memory that packing keeps for later is not a copy of the weight
    after = read_memory()
    answer = {
        "anonymous": after.anonymous - before.anonymous,
        "file_mapped": MappedFiles([request["data"]]).resident_bytes(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    _worker()
