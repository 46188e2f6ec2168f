"""What is computed from small constants alone, computed once and stored."""

from __future__ import annotations

import onnx_ir as ir

from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import initializer, prune, replace
from edgetie.passes.base import GraphPass

_DRAWS = {"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"}


class FoldConstants(GraphPass):
    """Replaces nodes that read constants only, as ONNX Runtime does when a session starts.

    A session may then start without optimizing the graph. Leaves alone what reads a weight of some
    size: the result would be a copy of it.
    """

    name = "fold"

    def rewrite(self, model: ir.Model) -> None:
        known: set[ir.Value] = set()
        for node in model.graph:
            if _is_fixed(node) and all(_is_small(value, known) for value in node.inputs):
                known.update(node.outputs)
        wanted = [
            value
            for value in known
            if any(not known.issuperset(user.outputs) for user, _ in value.uses())
        ]
        if not wanted:
            return
        results = _run(model, [str(value.name) for value in wanted])
        for value, result in zip(wanted, results, strict=True):
            replace(value, initializer(model.graph, f"{value.name}.folded", result))
            self.changed += 1


def _is_fixed(node: ir.Node) -> bool:
    """Whether a node makes the same of the same inputs: it reads no others and draws nothing."""
    return (
        node.domain == ""
        and bool(node.inputs)
        and node.op_type not in _DRAWS
        and not any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        )
    )


def _is_small(value: ir.Value | None, known: set[ir.Value]) -> bool:
    if value is None or value in known:
        return True
    tensor = value.const_value
    return value.is_initializer() and tensor is not None and tensor.size < MIN_ELEMENTS


def _run(model: ir.Model, names: list[str]) -> list[object]:
    """The values of these names, which depend on no input."""
    import onnxruntime

    model.graph.sort()
    copy = model.clone()
    made = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.inputs.clear()
    copy.graph.outputs[:] = [made[name] for name in names]
    prune(copy)
    for value in copy.graph.initializers.values():  # a session of bytes knows no folder
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(copy).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    results: list[object] = session.run(names, {})
    return results
