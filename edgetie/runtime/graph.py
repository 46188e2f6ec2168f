"""Graphs loaded from memory, and the change made to them: logits of all tokens, not of the last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.errors import BundleError

if TYPE_CHECKING:
    import onnx

FOLDER = "session.model_external_initializers_file_folder_path"
"""What tells a session where the weights of a graph from memory lie."""


def read_graph(model_path: Path) -> tuple[onnx.ModelProto, Path]:
    """A graph without its weights, and the folder that these lie in.

    Symbolic links to the weights are followed, which ONNX Runtime does for files only.

    Raises:
        BundleError: if the file cannot be read.
    """
    import onnx  # of all that a session needs, the slowest to import

    try:
        model = onnx.load(str(model_path), load_external_data=False)
    except Exception as error:
        raise BundleError(f"{model_path}: not a readable ONNX model ({error})") from error
    folder = model_path.parent.resolve()
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            data = model_path.parent / entry.value
            if entry.key == "location" and data.is_symlink():
                folder, entry.value = data.resolve().parent, data.resolve().name
    return model, folder


def without_last_token(model_path: Path) -> tuple[onnx.ModelProto, Path] | None:
    """A graph without the node that keeps each row's last token, as :func:`read_graph` gives it.

    Returns:
        The graph, whose logits are ``(batch, sequence, vocabulary)`` with each row's tokens packed
        to the left, or ``None`` if there is no such node.

    Raises:
        BundleError: if the file cannot be read.
    """
    model, folder = read_graph(model_path)
    graph = model.graph
    found = next((node for node in graph.node if node.name == LAST_TOKEN_NODE), None)
    if found is None:
        return None
    every, last = found.input[0], found.output[0]
    graph.node.remove(found)
    outputs = {output.name: output for output in graph.output}
    old, new = (every, last) if last in outputs else (last, every)
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    sequence = next(i for i in graph.input if i.name == "input_ids").type.tensor_type.shape.dim[1]
    outputs["logits"].type.tensor_type.shape.dim[1].CopyFrom(sequence)
    del graph.value_info[:]  # shapes behind the node have changed; ONNX Runtime infers them anew
    return model, folder
