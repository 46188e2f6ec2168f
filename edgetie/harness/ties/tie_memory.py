"""Measure how much memory a loaded session keeps for one tied weight.

The nodes that use the weight become a separate model over the same bytes of the same file. A fresh
process loads it and runs it once. The growth of the process's memory is what the weight takes.
"""

import base64
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetie.graph.matching import attribute_ints, only_user, operator, producer
from edgetie.providers.json_worker import ask_worker, reply
from edgetie.ties.groups import TieGroup, nodes_using

MIN_BYTES = 8 << 20
"""For smaller weights the measurement would show the session, not the weight."""

_ARRANGING = {"Transpose", "Reshape", "Cast", "Identity", "DequantizeLinear"}
"""Operators that only change how a weight is stored."""

_MATMULS = ("MatMul", "MatMulInteger", "MatMulIntegerToFloat", "Gemm", "FusedMatMul")


@dataclass(frozen=True)
class TieMemory:
    """Resident bytes kept for a weight: private to the process, and pages of the file."""

    anonymous: int
    file_mapped: int

    def copies(self, size: int) -> int:
        """Count the copies of a weight of ``size`` bytes."""
        return max(1, round((self.anonymous + self.file_mapped) / size))


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
    # no other system than Linux reports which pages are resident
    extracted = _extract(model, group) if sys.platform == "linux" else None
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
    if any(node.graph is not model.graph for node in nodes_using(model, group.name)):
        return None  # a branch runs only if its condition holds
    graph = model.clone().graph
    readers = _readers([node for node, _ in graph.initializers[group.name].uses()])
    outputs = [_quantized_result(node) for node in readers]
    inputs: list[ir.Value] = []
    feeds = {}
    for node in readers:
        for index, value in enumerate(node.inputs):
            if value is None or _is_constant(value):
                continue
            shape, dtype = _shape(node, index), _dtype(node, index, value)
            if shape is None:
                return None
            user, place = _before_quantization(node, index)
            if user.inputs[place] in inputs:
                continue
            name = f"in.{len(inputs)}"
            inputs.append(ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype)))
            feeds[name] = {"shape": shape, "dtype": dtype.numpy().name}
            user.replace_input_with(place, inputs[-1])
    if not outputs:
        return None
    graph.inputs.extend(inputs)
    subgraph = ir.convenience.extract(graph, inputs, outputs)
    if group.name not in subgraph.initializers:
        return None
    for node in subgraph:
        for value in node.outputs:
            value.shape = None  # of more tokens, or with a batch
    return ir.Model(subgraph, ir_version=model.ir_version), feeds


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


def _quantized_result(node: ir.Node) -> ir.Value:
    """Return a node's result, after the QuantizeLinear and DequantizeLinear that read it alone."""
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        after = only_user(node.outputs[0], op_type)
        if after is None or not _have_constants(after):
            break
        node = after
    return node.outputs[0]


def _before_quantization(node: ir.Node, index: int) -> tuple[ir.Node, int]:
    """Return the node and the index of its input that the values of an input come from."""
    after = producer(node.inputs[index], "DequantizeLinear")
    before = producer(after.inputs[0], "QuantizeLinear") if after is not None else None
    if after is not None and before is not None and _have_constants(before, after):
        return before, 0
    return node, index


def _is_constant(value: ir.Value) -> bool:
    """Whether a value is a constant, or a rearranged one."""
    node = value.producer()
    if value.const_value is not None or node is None:
        return value.const_value is not None
    inputs = [value for value in node.inputs if value is not None]
    return operator(node) in _ARRANGING and all(map(_is_constant, inputs))


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
    other = node.inputs[1 - index] if index < 2 and operator(node) in _MATMULS else None
    shape = _inferred_shape(other) if other is not None else None
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


def _measure(request: dict[str, Any]) -> dict[str, int]:
    from edgetie.providers.registry import require_provider
    from edgetie.runtime.memory import MappedFiles, read_memory, release_file_pages, release_heap
    from edgetie.runtime.session import session_options, start_session

    provider = require_provider(request["provider"])
    options = session_options(1, provider)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", request["folder"]
    )
    model = base64.b64decode(request["model"])
    release_heap()
    before = read_memory()
    session = start_session(model, options, provider)
    release_file_pages([request["data"]])
    feeds = {
        name: np.zeros(feed["shape"], feed["dtype"]) for name, feed in request["feeds"].items()
    }
    session.run(None, feeds)
    release_heap()  # free memory that packing keeps for later is not a copy of the weight
    after = read_memory()
    return {
        "anonymous": after.anonymous - before.anonymous,
        "file_mapped": MappedFiles([request["data"]]).resident_bytes(),
    }


if __name__ == "__main__":
    reply(_measure)
