"""Rewrite an exported program so that torch.onnx can convert it without decomposing it."""

from typing import Any

import torch
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

aten = torch.ops.aten
_LARGEST_CONSTANT = 1 << 14  # elements
_EQUIVALENT = {
    aten.view.default: aten.reshape.default,
    aten.max.other: aten.maximum.default,
    aten.min.other: aten.minimum.default,
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
}
"""Operators without an ONNX function, and others that compute the same."""

_RANDOM = torch.Tag.nondeterministic_seeded


def rewrite_for_onnx(program: torch.export.ExportedProgram) -> bool:
    """Replace operators without an ONNX function and evaluate constants, in place.

    Returns:
        Whether the program can be converted as it is: no operator writes to its inputs.
    """
    graph = program.graph
    for node in list(graph.nodes):
        node.target = _EQUIVALENT.get(node.target, node.target)
        if _changes_nothing(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
        if node.target is aten.scaled_dot_product_attention.default:
            _make_contiguous(node)
    _evaluate_constants(program)
    if any(_is_operator(node) and node.target._schema.is_mutable for node in graph.nodes):
        return False
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) is aten.to:
            node.target = aten._to_copy.default
            node.args, node.kwargs = node.args[:1], {"dtype": node.meta["val"].dtype}
    return True


def reset_after_failure(program: torch.export.ExportedProgram) -> None:
    """Allow another conversion: torch would miss symbols that the failed one left pending."""
    values = [node.meta.get("val") for node in program.graph.nodes]
    mode = torch._guards.detect_fake_mode(values)
    if mode is not None and mode.shape_env is not None:
        mode.shape_env.pending_fresh_unbacked_symbols.clear()


def _changes_nothing(node: torch.fx.Node) -> bool:
    if node.target is aten.squeeze.dim:  # of a dimension that is not 1; in ONNX an error
        return bool(node.meta["val"].ndim == node.all_input_nodes[0].meta["val"].ndim)
    # after every tensor that a model makes of numbers
    return node.target is aten.detach_.default


def _make_contiguous(attention: torch.fx.Node) -> None:
    """Copy the output of attention, whose strides may change; in ONNX the copy is an Identity."""
    graph = attention.graph
    with graph.inserting_after(attention):
        copy = graph.call_function(aten.clone.default)
    attention.replace_all_uses_with(copy)
    copy.args, copy.kwargs = (attention,), {"memory_format": torch.contiguous_format}
    copy.meta = dict(attention.meta)


def _evaluate_constants(program: torch.export.ExportedProgram) -> None:
    """Evaluate nodes that depend on nothing but small constants."""
    results: dict[torch.fx.Node, torch.Tensor] = {}
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.target in constants:
            results[node] = program.constants[constants[node.target]]
        elif not _is_operator(node) or not results.keys() & node.all_input_nodes:
            continue
        elif node.target._schema.is_mutable:
            if node.args[0] in results:  # not a constant after all
                return
        elif results.keys() >= set(node.all_input_nodes) and _RANDOM not in node.target.tags:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), results.__getitem__)
            result = node.target(*args, **kwargs)
            if isinstance(result, torch.Tensor) and result.numel() <= _LARGEST_CONSTANT:
                results[node] = result
    for node, value in results.items():
        if node.op != "placeholder" and any(user not in results for user in node.users):
            _replace_by_constant(program, node, value)


def _replace_by_constant(
    program: torch.export.ExportedProgram, node: torch.fx.Node, value: torch.Tensor
) -> None:
    graph, name = program.graph, f"constant_{node.name}"
    with graph.inserting_before(next(iter(graph.nodes))):
        constant = graph.placeholder(name)
    constant.meta = {"val": node.meta["val"]}
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(constant.name), name)
    program.graph_signature.input_specs.insert(0, spec)
    program.constants[name] = value
    node.replace_all_uses_with(constant)
    graph.erase_node(node)


def _is_operator(node: torch.fx.Node) -> Any:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
