"""The one change made to a graph when it is loaded: logits of all tokens, not of the last."""

from __future__ import annotations

from pathlib import Path

from edgetie.bundle import LAST_TOKEN_NODE
from edgetie.errors import BundleError


def without_last_token(model_path: Path) -> bytes | None:
    """The model at ``model_path`` without the node that keeps each row's last token.

    External data stays where it is: only the graph is read.

    Returns:
        The serialized graph, whose logits are ``(batch, sequence, vocabulary)`` with each row's
        tokens packed to the left, or ``None`` if there is no such node.

    Raises:
        BundleError: if the file cannot be read.
    """
    import onnx  # of all that a session needs, the slowest to import

    try:
        model = onnx.load(str(model_path), load_external_data=False)
    except Exception as error:
        raise BundleError(f"{model_path}: not a readable ONNX model ({error})") from error
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
    data: bytes = model.SerializeToString()
    return data
