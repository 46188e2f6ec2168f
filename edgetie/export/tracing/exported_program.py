"""What a traced program says that torch.onnx has no words for, said otherwise before conversion."""

from __future__ import annotations

from typing import Any

import torch
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

aten = torch.ops.aten
_LARGEST_CONSTANT = 1 << 14  # elements
_SAME = {
    aten.view.default: aten.reshape.default,
    aten.max.other: aten.maximum.default,
    aten.min.other: aten.minimum.default,
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
}
"""Operators, and others that compute the same."""

_DRAWS = torch.Tag.nondeterministic_seeded


def prepare(program: torch.export.ExportedProgram) -> bool:
    """Rewrite ``program`` in place.

    Returns:
        Whether it can be converted without being decomposed: no operator works in place.
    """
    graph = program.graph
    for node in list(graph.nodes):
        node.target = _SAME.get(node.target, node.target)
        if node.target is aten.detach_.default:  # behind every tensor that a model makes of numbers
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        if node.target is aten.scaled_dot_product_attention.default:
            _settle_strides(node)
    _evaluate_constants(program)
    if any(_operator(node) and node.target._schema.is_mutable for node in graph.nodes):
        return False
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) is aten.to:
            node.target = aten._to_copy.default
            node.args, node.kwargs = node.args[:1], {"dtype": node.meta["val"].dtype}
    return True


def forget_failure(program: torch.export.ExportedProgram) -> None:
    """Make ready for another conversion: torch would miss sizes that the failed one drew up."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    mode = torch._guards.detect_fake_mode(values)
    if mode is not None and mode.shape_env is not None:
        mode.shape_env.pending_fresh_unbacked_symbols.clear()


def _settle_strides(attention: torch.fx.Node) -> None:
    """Copy what attention returns: decomposed, it has other strides than traced, and a view of it
    would be none. In ONNX the copy is an Identity, which goes.
    """
    graph = attention.graph
    with graph.inserting_after(attention):
        copy = graph.call_function(aten.clone.default)
    attention.replace_all_uses_with(copy)
    copy.args, copy.kwargs = (attention,), {"memory_format": torch.contiguous_format}
    copy.meta = dict(attention.meta)


def _evaluate_constants(program: torch.export.ExportedProgram) -> None:
    """Run what depends on nothing but small constants, and put its results in its place."""
    known: dict[torch.fx.Node, torch.Tensor] = {}
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.target in constants:
            known[node] = program.constants[constants[node.target]]
        elif not _operator(node) or not known.keys() & node.all_input_nodes:
            continue
        elif node.target._schema.is_mutable:
            if node.args[0] in known:  # no constant after all
                return
        elif known.keys() >= set(node.all_input_nodes) and _DRAWS not in node.target.tags:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
            result = node.target(*args, **kwargs)
            if isinstance(result, torch.Tensor) and result.numel() <= _LARGEST_CONSTANT:
                known[node] = result
    for node, value in known.items():
        if node.op != "placeholder" and any(user not in known for user in node.users):
            node.replace_all_uses_with(_constant(program, f"constant_{node.name}", value, node))
            program.graph.erase_node(node)


def _constant(
    program: torch.export.ExportedProgram, name: str, value: torch.Tensor, like: torch.fx.Node
) -> torch.fx.Node:
    graph, signature = program.graph, program.graph_signature
    with graph.inserting_before(next(iter(graph.nodes))):
        node: torch.fx.Node = graph.placeholder(name)
    node.meta = {"val": like.meta["val"]}
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), name)
    signature.input_specs.insert(0, spec)
    program.constants[name] = value
    return node


def _operator(node: torch.fx.Node) -> Any:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
