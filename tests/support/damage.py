"""Damage files at random: bytes, JSON documents and ONNX graphs. The same seed does the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import onnx
from onnx import AttributeProto, ModelProto, TensorProto

HUGE = 1 << 70
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 7, 2**31 - 1, 1 << 31, 2**32 - 1, 1 << 40, HUGE, 1e308, float("nan"),
    float("-inf"), "", "x", "../x", "/", "\0", "\ud800", "x" * 5000, [], {}, [[]], {"x": 1},
    ["x", -1], [HUGE],
)  # fmt: skip


def damage_bytes(path: Path, rng: Random, ends: int = 400) -> str:
    """Flip, cut, insert, zero, repeat or overwrite bytes, more often at both ends."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip", "cut", "insert", "zero", "repeat", "count"))
    for _ in range(rng.choice((1, 1, 3, 20))):
        end = min(len(data), ends)
        place = rng.choice((rng.randrange(end), len(data) - 1 - rng.randrange(end)))
        place = rng.choice((place, rng.randrange(len(data))))
        if kind == "flip":
            data[place] = rng.randrange(256)
        elif kind == "insert":
            data[place:place] = rng.randbytes(rng.choice((1, 9)))
        elif kind == "zero":
            data[place : place + 8] = bytes(len(data[place : place + 8]))
        elif kind == "count":  # numbers of 32 or 64 bits, as of entries, lengths and offsets
            place, width = place & ~7, rng.choice((4, 8))
            number = rng.choice(
                (0, 1, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
            )
            data[place : place + width] = number.to_bytes(8, "little")[:width]
        elif kind == "repeat":
            data[place:place] = data[place : place + rng.choice((2, 50))]
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    path.write_bytes(data)
    return f"{kind} bytes of {path.name}"


def damage_file(path: Path, rng: Random) -> str:
    """Put something else in the place of a file."""
    kind = rng.choice(("nothing", "empty file", "directory", "dangling link", "loop of links"))
    path.unlink()
    if kind == "empty file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to("absent" if kind == "dangling link" else path.name)
    return f"{kind} for {path.name}"


def damage_json(path: Path, rng: Random) -> str:
    """Remove, replace, swap or nest one to three values of a JSON document, or write it oddly."""
    document = json.loads(path.read_bytes())
    what = _damage_document(document, rng)
    text, encoding = json.dumps(document), "utf-8"
    kind = rng.choice([None] * 30 + ["nest deeply", "repeat a key", "long number", "utf-16"])
    if kind == "nest deeply":
        text = f'{text[:-1]}, "deep": {"[" * 100_000}{"]" * 100_000}}}'
    elif kind == "repeat a key" and document:
        key, value = rng.choice(list(document)), rng.choice(WRONG)
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(value)}}}"
    elif kind == "long number":  # longer than Python reads
        text = f'{text[:-1]}, "long": {"9" * 5000}}}'
    elif kind == "utf-16":
        encoding = kind
    path.write_text(text, encoding=encoding)
    what += [kind] if kind else []
    return f"{', '.join(what)} of {path.name}"


def damage_safetensors(path: Path, rng: Random) -> str:
    """Damage the header of a safetensors file, which is a JSON document."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    what = _damage_document(header, rng)
    tensors = [each for each in header.values() if isinstance(each, dict) and "dtype" in each]
    if tensors and rng.random() < 0.5:
        tensor, ends = rng.choice(tensors), (-1, 0, 1, 64, len(data) - end, 1 << 31, (1 << 64) - 1)
        tensor["dtype"] = rng.choice((tensor["dtype"], "F16", "F64", "I8", "BOOL"))
        tensor["data_offsets"] = [rng.choice(ends), rng.choice(ends)]
        what.append("move a tensor")
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    return f"{', '.join(what)} of {path.name}"


def _damage_document(document: Any, rng: Random) -> list[str]:
    what = []
    for _ in range(rng.choice((1, 1, 1, 3))):
        places = list(_places(document))
        if not places:
            break
        container, key = rng.choice(places)
        kind = rng.choice(("remove", "replace", "replace", "replace", "swap", "nest"))
        if kind == "remove":
            del container[key]
        elif kind == "replace":
            container[key] = copy.deepcopy(rng.choice(WRONG))
        elif kind == "swap":
            other = rng.choice(list(container) if isinstance(container, dict) else [0])
            container[key], container[other] = container[other], container[key]
        else:
            container[key] = [container[key]]
        what.append(f"{kind} {key!r:.40}")
    return what


def _places(data: Any, few: int = 40) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a document, of long lists and tables only the first ones."""
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    for key in keys[:few]:
        yield data, key
        if isinstance(data[key], dict | list):
            yield from _places(data[key], 8)


def damage_model(path: Path, rng: Random) -> str:
    """Damage one to three messages of an ONNX file, which can be parsed all the same."""
    model = onnx.load(path, load_external_data=False)
    what = [rng.choice(_MODEL_DAMAGE)(model, rng) for _ in range(rng.choice((1, 1, 3)))]
    data = model.SerializePartialToString()
    name = rng.choice(_names(model)).encode()
    if name and rng.random() < 0.05:
        data = data.replace(name, b"\xff" * len(name))
        what.append("name of no text")
    path.write_bytes(data)
    return f"{', '.join(what)} of {path.name}"


def _names(model: ModelProto) -> list[str]:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return [*names, *(tensor.name for tensor in model.graph.initializer), "absent", ""]


def _node(model: ModelProto, rng: Random) -> Any:
    return rng.choice(model.graph.node or [onnx.NodeProto()])


def _tensor(model: ModelProto, rng: Random) -> TensorProto:
    inside = [a.t for n in model.graph.node for a in n.attribute if a.HasField("t")]
    return rng.choice([*model.graph.initializer, *inside] or [TensorProto()])


def _size(rng: Random) -> int:
    sizes = (-1, -(1 << 63), 0, 1, 3, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 63) - 1)
    return rng.choice(sizes)


def _rewire(model: ModelProto, rng: Random) -> str:
    node = _node(model, rng)
    names = rng.choice((node.input, node.output))
    if names:
        names[rng.randrange(len(names))] = rng.choice(_names(model))
    return f"rewire {node.op_type}"


def _close_circle(model: ModelProto, rng: Random) -> str:
    nodes = [node for node in model.graph.node if node.input and node.output]
    if not nodes:
        return "nothing"
    first, last = sorted(rng.choice(range(len(nodes))) for _ in range(2))
    inputs = nodes[first].input
    inputs[rng.randrange(len(inputs))] = nodes[last].output[0]
    return f"circle of {nodes[first].op_type} and {nodes[last].op_type}"


def _resize_names(model: ModelProto, rng: Random) -> str:
    node = _node(model, rng)
    names = rng.choice((node.input, node.output))
    kept = list(names)[: rng.randrange(len(names) + 1)]
    more = [rng.choice(_names(model)) for _ in range(rng.choice((0, 1, 40)))]
    names[:] = kept + more
    return f"resize {node.op_type}"


def _remove_node(model: ModelProto, rng: Random) -> str:
    node = _node(model, rng)
    if len(model.graph.node):
        model.graph.node.remove(node)
    return f"remove {node.op_type}"


def _rename_operator(model: ModelProto, rng: Random) -> str:
    node = _node(model, rng)
    node.op_type = rng.choice(("", "Nonsense", "If", "Loop", "Constant", "Gather", "Reshape"))
    node.domain = rng.choice((node.domain, "", "own", "com.microsoft"))
    return f"rename to {node.op_type}"


def _change_attribute(model: ModelProto, rng: Random) -> str:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return "nothing"
    attribute = rng.choice(rng.choice(nodes).attribute)
    kind = rng.choice(("type", "number", "remove value", "name", "negative"))
    if kind == "type":
        attribute.type = rng.choice(AttributeProto.AttributeType.values())
    elif kind == "number":
        attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, _size(rng)))
    elif kind == "negative":
        attribute.i = -5
    elif kind == "name":
        attribute.name = rng.choice(("", "axis", "perm", "value", "to"))
    else:
        for field in ("i", "f", "s", "t", "g"):
            attribute.ClearField(field)
    return f"{kind} of attribute {attribute.name}"


def _change_tensor(model: ModelProto, rng: Random) -> str:
    tensor = _tensor(model, rng)
    kind = rng.choice(("type", "dims", "data", "name", "external", "length"))
    if kind == "type":
        tensor.data_type = rng.choice((*TensorProto.DataType.values(), 99))
    elif kind == "dims":
        tensor.dims[:] = rng.choice(([], [_size(rng)], [_size(rng) for _ in range(3)]))
    elif kind == "data":
        tensor.raw_data = tensor.raw_data[: rng.randrange(9)]
    elif kind == "name":
        tensor.name = rng.choice(_names(model))
    elif kind == "external":
        tensor.data_location = TensorProto.EXTERNAL
    for entry in tensor.external_data if kind == "length" else ():
        if rng.random() < 0.5:
            values = (
                "",
                "-1",
                "x",
                str(HUGE),
                "../x",
                "1",
                "/etc/passwd",
                "64",
                "4096",
                str(1 << 40),
            )
            entry.value = rng.choice((*values, "model.onnx", "."))
    return f"{kind} of a tensor"


def _change_value(model: ModelProto, rng: Random) -> str:
    graph = model.graph
    value = rng.choice([*graph.input, *graph.output, *graph.value_info] or [onnx.ValueInfoProto()])
    kind = rng.choice(("type", "size", "rank", "name", "remove", "sequence"))
    tensor = value.type.tensor_type
    if kind == "type":
        tensor.elem_type = rng.choice((*TensorProto.DataType.values(), 99))
    elif kind == "size" and tensor.shape.dim:
        rng.choice(tensor.shape.dim).dim_value = _size(rng)
    elif kind == "rank":
        tensor.shape.dim.add(dim_value=_size(rng))
    elif kind == "name":
        value.name = rng.choice(_names(model))
    elif kind == "remove":
        value.ClearField("type")
    elif kind == "sequence":
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    return f"{kind} of value {value.name}"


def _change_versions(model: ModelProto, rng: Random) -> str:
    kind = rng.choice(("ir", "opset", "no opset"))
    if kind == "ir":
        model.ir_version = _size(rng)
    elif model.opset_import and kind == "opset":
        rng.choice(model.opset_import).version = _size(rng)
    else:
        del model.opset_import[:1]
    return kind


def _repeat(model: ModelProto, rng: Random) -> str:
    field = rng.choice(("node", "input", "output", "initializer"))
    values = getattr(model.graph, field)
    if values:
        values.append(rng.choice(values))
    return f"repeat {field}"


def _remove(model: ModelProto, rng: Random) -> str:
    field = rng.choice(("node", "input", "output", "initializer"))
    values = getattr(model.graph, field)
    if values:
        place = rng.randrange(len(values))
        del values[place : place + rng.choice((1, 100))]
    return f"remove {field}"


_MODEL_DAMAGE = (
    _rewire, _rewire, _close_circle, _resize_names, _remove_node, _rename_operator,
    _change_attribute, _change_attribute, _change_tensor, _change_tensor, _change_value,
    _change_value, _change_versions, _repeat, _remove,
)  # fmt: skip
