"""Read ONNX files as they are, and refuse damaged ones before anything works on them."""

from __future__ import annotations

import functools
import graphlib
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from edgetie.errors import BundleError, summarize

_PAYLOADS = {
    "FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "GRAPH": "g", "TYPE_PROTO": "tp",
    "SPARSE_TENSOR": "sparse_tensor", "FLOATS": "floats", "INTS": "ints", "STRINGS": "strings",
    "TENSORS": "tensors", "GRAPHS": "graphs", "TYPE_PROTOS": "type_protos",
    "SPARSE_TENSORS": "sparse_tensors",
}  # fmt: skip
"""The field that holds an attribute's value, by the attribute's type."""
_NEEDS_PAYLOAD = {"TENSOR", "GRAPH", "TYPE_PROTO", "SPARSE_TENSOR"}
"""Types without a default. Writers of proto3 leave out numbers that are 0 and empty texts."""
_MAIN_DOMAINS = ("", "ai.onnx")
_DTYPES = {each.value for each in ir.DataType} & {*onnx.TensorProto.DataType.values()} - {0}
_LIMIT = 1 << 31  # sizes of inputs and outputs stay below
_EXTERNAL = onnx.TensorProto.EXTERNAL
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def read_proto(path: Path) -> onnx.ModelProto:
    """Read an ONNX file without its external data.

    Raises:
        BundleError: if it is not an ONNX model, or :func:`damage_of` finds its structure damaged.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's class depends on its version
        raise BundleError(f"{path}: not a readable ONNX model ({summarize(error)})") from error
    if not model.graph.node and not model.graph.initializer:
        raise BundleError(f"{path}: not an ONNX model, or an empty one")
    if (damage := damage_of(model)) is not None:
        raise BundleError(f"{path}: damaged, {damage}; download or export it again")
    return model


def damage_of(model: onnx.ModelProto) -> str | None:
    """Describe the first damage of a model's structure; ``None`` if there is none.

    These are texts that are not UTF-8, unknown types, negative sizes, tensors whose data do not
    fill their shape, attributes of the wrong kind, names that nothing or several nodes produce,
    nodes that depend on themselves, and functions that call themselves. External data is not read,
    see :func:`edgetie.graph.external_data.check_external_data`.
    """
    return next(_problems(model), None)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of a tensor's values. Its type must be known; texts count nothing."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return 0
    bits: int = math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
    return (bits + 7) // 8


class _Operators(NamedTuple):
    """What the operators of a graph or function mean: opsets by domain, the model's functions."""

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str], onnx.FunctionProto]

    @classmethod
    def of(cls, body: onnx.ModelProto | onnx.FunctionProto, model: onnx.ModelProto) -> _Operators:
        return cls(
            {_plain_domain(each.domain): each.version for each in body.opset_import},
            {(each.domain, each.name): each for each in model.functions},
        )


def _problems(model: onnx.ModelProto) -> Iterator[str]:
    yield from _texts(model)  # first: what follows compares names
    if not 1 <= model.ir_version <= onnx.IR_VERSION:
        yield f"its IR version is {model.ir_version}, known are 1 to {onnx.IR_VERSION}"
    operators = _Operators.of(model, model)
    opset, newest = operators.opsets.get("", 1), onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        yield f"its opset is {opset}, known are 1 to {newest}"
    yield from _graph(model.graph, set(), operators)
    names = operators.functions.keys()
    calls = {
        name: {(node.domain, node.op_type) for node in _nodes(function.node)} & names
        for name, function in operators.functions.items()
    }
    if cycle := _cycle(calls):
        yield f"function {cycle[0][1]} calls itself"
    for function in model.functions:
        known, own_operators = set(function.input), _Operators.of(function, model)
        yield from _body(function.node, function.output, known, own_operators)


def _texts(message: Any) -> Iterator[str]:
    """Find text fields that are not UTF-8, which protobuf returns as bytes."""
    if isinstance(message, onnx.TensorProto):  # listing the fields would copy its data
        fields = [("name", message.name), ("doc_string", message.doc_string)]
        values: list[Any] = [("external_data", message.external_data)]
    else:
        listed = message.ListFields()
        fields = [(f.name, value) for f, value in listed if f.type == f.TYPE_STRING]
        values = [(f.name, value) for f, value in listed if f.type == f.TYPE_MESSAGE]
    for name, value in fields:
        for text in (value,) if isinstance(value, str | bytes) else value:
            if isinstance(text, bytes):
                kind = message.DESCRIPTOR.name.removesuffix("Proto").lower()
                yield f"the {name} of a {kind} is not text ({text[:40]!r})"
    for _, value in values:
        for each in (value,) if hasattr(value, "ListFields") else value:
            yield from _texts(each)


def _plain_domain(domain: str) -> str:
    return "" if domain in _MAIN_DOMAINS else domain


def _graph(graph: onnx.GraphProto, outer: Set[str], operators: _Operators) -> Iterator[str]:
    """Find damage in a graph whose nodes may also read the names ``outer``."""
    tensors = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
    for tensor in (*tensors, *(sparse.indices for sparse in graph.sparse_initializer)):
        yield from _tensor(tensor)
    for value in (*graph.input, *graph.output):
        yield from _type(value.type, value.name)
    for value in graph.value_info:  # of which some are products of the sizes of inputs
        yield from _type(value.type, value.name, limit=math.inf)
    if not outer:
        yield from (
            f"input {value.name} has no type"
            for value in graph.input
            if value.type.WhichOneof("value") is None
        )
    for kind, values in (("input", graph.input), ("initializer", tensors)):
        if (name := _repeated(value.name for value in values)) is not None:
            yield f"{kind} {name} is there twice"
    known = {value.name for value in (*graph.input, *tensors)}
    outputs = [value.name for value in graph.output]
    yield from _body(graph.node, outputs, known, operators, outer)


def _body(
    nodes: Iterable[onnx.NodeProto],
    outputs: Iterable[str],
    known: Set[str],
    operators: _Operators,
    outer: Set[str] = frozenset(),
) -> Iterator[str]:
    """Find damage in the nodes of a graph or function, which starts from the names ``known``."""
    producers: dict[str, int] = {}
    nodes = list(nodes)
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in producers or name in known:
                yield f"{_label(node)} produces {name}, which is there already"
            producers[name] = index
    visible = {*known, *producers, *outer}
    for node in nodes:
        for name in node.input:
            if name and name not in visible:
                yield f"{_label(node)} reads {name}, which nothing produces"
        yield from _node(node, operators)
        for attribute in node.attribute:
            for subgraph in _subgraphs(attribute):
                yield from _graph(subgraph, visible, operators)
    if missing := next((name for name in outputs if name not in visible), None):
        yield f"nothing produces output {missing}"
    reads = {
        i: {producers[n] for n in _reads(node) & producers.keys()} for i, node in enumerate(nodes)
    }
    if cycle := _cycle(reads):
        yield f"{_label(nodes[cycle[0]])} depends on itself"


def _node(node: onnx.NodeProto, operators: _Operators) -> Iterator[str]:
    """Find damage in a node and its attributes."""
    label, domain = _label(node), _plain_domain(node.domain)
    if (name := _repeated(attribute.name for attribute in node.attribute)) is not None:
        yield f"{label} has attribute {name} twice"
    for attribute in node.attribute:
        yield from _attribute(attribute, label)
    if (node.domain, node.op_type) in operators.functions:
        return
    if not domain and domain not in operators.opsets:
        yield "it does not say which opset its operators are of"
    schema = _schema(node.op_type, operators.opsets.get(domain, 0), domain)
    if schema is not None:
        yield from _misuse(node, schema)


def _misuse(node: onnx.NodeProto, schema: Any) -> Iterator[str]:
    """Compare a node with the definition of its operator."""
    label = _label(node)
    for attribute in node.attribute:
        expected = schema.attributes.get(attribute.name)
        if expected is None and not attribute.name.startswith("__"):
            yield f"{label} has attribute {attribute.name}, which {node.op_type} does not have"
        if expected is not None and attribute.type != expected.type.value:
            kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
            yield f"attribute {attribute.name} of {label} is of the wrong kind ({kind})"
    present = {attribute.name for attribute in node.attribute}
    for name, definition in schema.attributes.items():
        if definition.required and name not in present:
            yield f"{label} lacks attribute {name}"
    for what, count, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            yield f"{label} has {count} {what}"


@functools.cache
def _schema(op_type: str, version: int, domain: str) -> Any:
    """Return the definition of an operator, or ``None`` if onnx does not have it."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):  # a TypeError of versions beyond 32 bits
        return None


def _attribute(attribute: onnx.AttributeProto, label: str) -> Iterator[str]:
    """Find an attribute whose value is not of its type, or damaged itself."""
    where = f"attribute {attribute.name} of {label}"
    kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
    filled = {field.name for field, _ in attribute.ListFields()} & {*_PAYLOADS.values()}
    if kind not in _PAYLOADS:
        yield f"{where} has no type"
    elif filled - {_PAYLOADS[kind]}:
        yield f"{where} is of the wrong kind ({kind})"
    elif kind in _NEEDS_PAYLOAD and not filled and not attribute.ref_attr_name:
        yield f"{where} has no value"
    for tensor in _attribute_tensors(attribute):
        yield from _tensor(tensor, where)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for each in (*sparse, *attribute.sparse_tensors):
        yield from (each.values, each.indices)


def _tensor(tensor: onnx.TensorProto, where: str = "") -> Iterator[str]:
    """Find a tensor whose data does not fill its shape."""
    where = where or f"tensor {tensor.name}"
    if tensor.data_type not in _DTYPES:
        yield f"{where} has the unknown type {tensor.data_type}"
        return
    if any(size < 0 for size in tensor.dims):
        yield f"{where} has a negative size ({list(tensor.dims)})"
        return
    is_text = tensor.data_type == onnx.TensorProto.STRING
    if is_text and (tensor.HasField("raw_data") or tensor.data_location == _EXTERNAL):
        yield f"{where} stores texts as bytes"
        return
    if tensor.data_location == _EXTERNAL:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if not PurePath(location).name:
            name = tensor.name or where
            yield f"external data of {name} is not a range of a file next to the model"
        return
    expected = tensor_bytes(tensor)
    if tensor.HasField("raw_data"):
        count = len(tensor.raw_data)
    else:  # a number per element, of which complex ones have two and 4 bits share one
        parts = math.prod(tensor.dims) * (1 + (tensor.data_type in _COMPLEX))
        expected = parts if is_text else min(parts, expected)
        count = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
    if count != expected:
        yield f"the data of {where} does not fill its shape {list(tensor.dims)}"


def _type(kind: onnx.TypeProto, name: str, *, limit: float = _LIMIT) -> Iterator[str]:
    """Find an unknown type, or a negative or huge size, in the type of a value."""
    field = kind.WhichOneof("value")
    inner = getattr(kind, field) if field is not None else None
    if isinstance(inner, onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor):
        if inner.elem_type not in _DTYPES:
            yield f"value {name} has the unknown type {inner.elem_type}"
        for size in inner.shape.dim:
            if not 0 <= size.dim_value < limit:
                yield f"value {name} has the size {size.dim_value}"
    elif inner is not None:
        yield from _type(getattr(inner, "value_type", None) or inner.elem_type, name, limit=limit)


def _label(node: onnx.NodeProto) -> str:
    outputs = ", ".join(filter(None, node.output))
    return f"node {node.name or outputs} ({node.op_type})"


def _subgraphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in _subgraphs(attribute):
                yield from _nodes(graph.node)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node and its subgraphs read from the graph around it."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in _subgraphs(attribute):
            inner = {value.name for value in (*graph.input, *graph.initializer)}
            inner.update(name for each in graph.node for name in each.output)
            used = {name for each in graph.node for name in _reads(each)}
            used.update(value.name for value in graph.output)
            names |= used - inner
    return names


def _repeated(names: Iterable[str]) -> str | None:
    """Return the first name that comes a second time."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _cycle(graph: Mapping[Any, Set[Any]]) -> list[Any]:
    """Return the members of a cycle of a graph, of which each member maps to what it needs."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        members: list[Any] = error.args[1]
        return members
    return []
