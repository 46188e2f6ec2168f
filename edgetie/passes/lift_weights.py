"""Make all weights initializers that the graph itself reads."""

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgetie.graph.constant_values import constant_values
from edgetie.graph.constants import MIN_ELEMENTS
from edgetie.graph.editing import insert
from edgetie.graph.matching import outer_node
from edgetie.passes.base import GraphPass
from edgetie.passes.merge_duplicates import move_to_main_graph


class LiftWeights(GraphPass):
    """Inlines model-local functions that hold weights, and lifts constants of nodes.

    Afterwards every weight is an initializer. Other functions stay: ONNX Runtime may have kernels
    for them.

    Args:
        readers: also inline functions that get a weight as input, and move what subgraphs compute
            from constants to the main graph.
    """

    def __init__(self, *, readers: bool = False) -> None:
        super().__init__()
        self.readers = readers

    def rewrite(self, model: ir.Model) -> None:
        refused: set[ir.OperatorIdentifier] = set()
        while names := _functions_with_weights(model, self.readers) - refused:
            unfit = {name for name in names if not _has_opsets_of(model, model.functions[name])}
            refused |= unfit
            self.skipped += [f"{name}: has other opsets than the model" for _, name, _ in unfit]
            _inline(model, names - unfit)
            self.changed += len(names - unfit)
        lift = common.LiftConstantsToInitializersPass(lift_all_constants=False)
        self.changed += bool(lift(model).modified)
        if self.readers:
            self.changed += _lift_nodes(model)


def _inline(model: ir.Model, names: Collection[ir.OperatorIdentifier]) -> None:
    common.InlinePass(lambda function: function.identifier() in names)(model)


def _lift_nodes(model: ir.Model) -> int:
    """Move the nodes of subgraphs that compute constants to the main graph. Return their number."""
    constants = constant_values(model)
    count = 0
    for node in list(model.graph.all_nodes()):
        graph = node.graph
        is_output = any(value.is_graph_output() for value in node.outputs)
        if graph is None or graph is model.graph or is_output or node.outputs[0] not in constants:
            continue
        for value in node.inputs:
            if value is not None and value.is_initializer():
                move_to_main_graph(model, value)
        before = outer_node(node, model.graph)
        graph.remove(node)
        insert(before, node)
        count += 1
    return count


def _functions_with_weights(model: ir.Model, readers: bool) -> set[ir.OperatorIdentifier]:
    """Find the functions with a large constant, and perhaps those that get a weight as input."""
    names = {
        identifier
        for identifier, function in model.functions.items()
        if any(_holds_weight(node) for node in function.all_nodes())
    }
    if readers:
        constants = constant_values(model)
        names |= {
            node.op_identifier()
            for node in model.graph.all_nodes()
            if any(constants.get(value) for value in node.inputs if value is not None)
        }
    bodies = [model.graph, *(function.graph for function in model.functions.values())]
    called = {node.op_identifier() for graph in bodies for node in graph.all_nodes()}
    return names & model.functions.keys() & called


def _holds_weight(node: ir.Node) -> bool:
    value = node.attributes.get("value") if node.op_type == "Constant" else None
    return value is not None and not value.is_ref() and _is_large(value.value)


def _is_large(tensor: object) -> bool:
    return isinstance(tensor, ir.TensorProtocol) and tensor.size >= MIN_ELEMENTS


def _has_opsets_of(model: ir.Model, function: ir.Function) -> bool:
    """Whether a function's operators mean the same in the model's graph."""
    imports = function.opset_imports.items()
    return all(model.opset_imports.get(domain, version) == version for domain, version in imports)
