"""Let a decoder's graph return the logits of several of the last tokens.

The graph is edited as bytes in protobuf's wire format: to import onnx for it would take as long as
to start the session.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import LAST_TOKEN_NODE, LAST_TOKENS

_GRAPH = 7  # of a ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13  # of a GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _OPERATOR = 1, 2, 3, 4  # of a NodeProto
_NAME, _TYPE, _TENSOR, _SHAPE, _DIM, _DIM_NAME = 1, 2, 1, 2, 1, 2  # of a ValueInfoProto, nested
_EXTERNAL_DATA, _KEY, _VALUE = 13, 1, 2  # of a TensorProto, nested
_COUNT = "last_tokens"


def select_last_tokens(bundle: Bundle) -> tuple[bytes, Path] | None:
    """Edit a decoder's graph in memory so that it returns logits of several tokens.

    The node that selects the last token of each sequence then selects tokens relative to it: the
    new input ``LAST_TOKENS``, int64 ``(count, 1)``, is -1 and 0 for the last two. By default it is
    0, so that it need not be fed. The logits are ``(batch, count, vocabulary)``.

    Returns:
        The model without its weights, and the folder of these; ``None`` if there is no such node,
        the graph is damaged, or the weights are links to several folders.
    """
    data = bundle.model_path.read_bytes()
    if LAST_TOKEN_NODE.encode() not in data:
        return None
    files = {path.name: path.resolve() for path in bundle.data_files}
    folders = {path.parent for path in files.values()} or {bundle.model_path.parent}
    links = {old.encode(): path.name.encode() for old, path in files.items() if old != path.name}
    if len(folders) > 1:
        return None
    try:
        model = _edit(data, _GRAPH, lambda graph: _edit_graph(graph, links))
    except (IndexError, ValueError):  # ONNX Runtime says what is damaged
        return None
    return model, folders.pop()


def _edit_graph(graph: bytes, links: dict[bytes, bytes]) -> bytes:
    """Change the node, the logits and the names of the weights' files."""
    parts = []
    for number, content, field in _fields(graph):
        if number == _NODE and (_NODE_NAME, LAST_TOKEN_NODE.encode()) in _contents(content):
            field = _edit_node(content)
        elif number == _OUTPUT and (_NAME, b"logits") in _contents(content):
            field = _field(_OUTPUT, _edit_logits(content))
        elif number == _INITIALIZER and links:
            field = _field(number, _edit(content, _EXTERNAL_DATA, lambda x: _follow(x, links)))
        if number != _VALUE_INFO:  # shapes have changed; ONNX Runtime infers them anew
            parts.append(field)
    name = LAST_TOKENS.encode()
    # int64 (1, 1) of 0; and int64 (_COUNT, 1)
    default = b"\x08\x01\x08\x01\x10\x07" + _field(8, name) + _field(9, bytes(8))
    shape = _field(_DIM, _field(_DIM_NAME, _COUNT.encode())) + _field(_DIM, b"\x08\x01")
    tensor = b"\x08\x07" + _field(_SHAPE, shape)
    info = _field(_NAME, name) + _field(_TYPE, _field(_TENSOR, tensor))
    return b"".join([*parts, _field(_INITIALIZER, default), _field(_INPUT, info)])


def _edit_node(node: bytes) -> bytes:
    """Add the new input to the node's indices, with a node before it."""
    data, indices = (content for number, content in _contents(node) if number == _NODE_INPUT)
    name = f"{LAST_TOKENS}.indices".encode()
    add = (
        *(_field(_NODE_INPUT, value) for value in (indices, LAST_TOKENS.encode())),
        _field(_NODE_OUTPUT, name),
        _field(_NODE_NAME, name),
        _field(_OPERATOR, b"Add"),
    )
    rest = (field for number, _, field in _fields(node) if number != _NODE_INPUT)
    selected = b"".join([_field(_NODE_INPUT, data), _field(_NODE_INPUT, name), *rest])
    return _field(_NODE, b"".join(add)) + _field(_NODE, selected)


def _edit_logits(info: bytes) -> bytes:
    """Make the second axis of the logits as long as there are tokens."""

    def edit(shape: bytes) -> bytes:
        batch, _, *others = (field for _, _, field in _fields(shape))
        count = _field(_DIM, _field(_DIM_NAME, _COUNT.encode()))
        return b"".join([batch, count, *others])

    return _edit(info, _TYPE, lambda x: _edit(x, _TENSOR, lambda y: _edit(y, _SHAPE, edit)))


def _follow(entry: bytes, links: dict[bytes, bytes]) -> bytes:
    """Replace the location of external data by the file that it links to."""
    contents = dict(_contents(entry))
    value = contents.get(_VALUE, b"")
    if contents.get(_KEY) == b"location":
        value = links.get(value, value)
    return _field(_KEY, contents.get(_KEY, b"")) + _field(_VALUE, value)


def _edit(message: bytes, number: int, edit: Callable[[bytes], bytes]) -> bytes:
    """Replace the content of a field, as often as it occurs."""
    return b"".join(
        _field(number, edit(content)) if each == number else field
        for each, content, field in _fields(message)
    )


def _contents(message: bytes) -> list[tuple[int, bytes]]:
    return [(number, content) for number, content, _ in _fields(message)]


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the number, the content (empty for a number) and all bytes of each field."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 0:
            _, at = _read_varint(message, at)
        elif key & 7 == 2:
            size, at = _read_varint(message, at)
        content, at = message[at : at + size], at + size
        if at > len(message):
            raise ValueError("cut short")
        yield key >> 3, content, message[start:at]


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; returns it and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
