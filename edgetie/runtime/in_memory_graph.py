"""Graphs that a session gets from memory, their weights still in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.errors import BundleError
from edgetie.graph.external_data import check_external_data
from edgetie.runtime.last_tokens_graph import select_last_tokens

if TYPE_CHECKING:
    import onnx

EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""Session option: the folder with the weights of a graph from memory."""

_SMALL_BYTES = 512


def read_graph(model_path: Path) -> tuple[onnx.ModelProto, Path]:
    """Read a graph without its weights, and find the folder of these.

    Symbolic links to weights are followed, and small tensors, such as shapes, are read, both of
    which ONNX Runtime does only for graphs in files.

    Raises:
        BundleError: if the file cannot be read or is damaged, or its weights are missing.
    """
    model = check_external_data(model_path)
    folder = model_path.parent.resolve()
    for tensor in model.graph.initializer:
        entries = {entry.key: entry for entry in tensor.external_data}
        if "location" not in entries:
            continue
        data = model_path.parent / entries["location"].value
        length = int(entries["length"].value) if "length" in entries else None
        if length is not None and length <= _SMALL_BYTES:
            with data.open("rb") as file:
                file.seek(int(entries["offset"].value) if "offset" in entries else 0)
                tensor.raw_data = file.read(length)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
        elif data.is_symlink():
            folder, entries["location"].value = data.resolve().parent, data.resolve().name
    return model, folder


def edit_logits(bundle: Bundle, logits: str, *, several: bool) -> tuple[bytes, Path] | None:
    """Edit a bundle's graph for the logits of ``all`` tokens, or of ``several`` of the last.

    Returns:
        The model without its weights, and their folder; ``None`` if the file serves as it is.
    """
    if bundle.has_fixed_shapes:
        return None
    if logits == "all":
        edited = remove_last_token_node(bundle.model_path)
        return None if edited is None else (edited[0].SerializeToString(), edited[1])
    in_place = bundle.manifest.signature.cache_in_place
    return select_last_tokens(bundle) if several and in_place else None


def remove_last_token_node(model_path: Path) -> tuple[onnx.ModelProto, Path] | None:
    """Read a graph without the node that keeps only the last token of each sequence.

    Its logits are ``(batch, sequence, vocabulary)``, the tokens of each sequence moved to the left.
    ``None`` if there is no such node.

    Raises:
        BundleError: as :func:`read_graph`, or if ``input_ids`` or ``logits`` lacks its axes.
    """
    model, folder = read_graph(model_path)
    graph = model.graph
    node = next((node for node in graph.node if node.name == LAST_TOKEN_NODE), None)
    if node is None:
        return None
    axes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.input, *graph.output)}
    for name, count in (("input_ids", 2), ("logits", 3)):
        if len(axes.get(name, ())) != count:
            raise BundleError(f"{model_path}: {name} does not have {count} axes; export it again")
    all_tokens, last_token = node.input[0], node.output[0]
    graph.node.remove(node)
    outputs = {output.name for output in graph.output}
    old, new = (all_tokens, last_token) if last_token in outputs else (last_token, all_tokens)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    axes["logits"][1].CopyFrom(axes["input_ids"][1])
    del graph.value_info[:]  # shapes after the node have changed; ONNX Runtime infers them anew
    return model, folder
