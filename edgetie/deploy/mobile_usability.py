"""Estimate how much of a model a mobile execution provider would run."""

from pathlib import Path

import onnx

from edgetie.graph.structure import read_proto

_VERDICTS = {"yes": "worth using", "maybe": "worth measuring", "no": "use the CPU instead"}


def usability(model_path: Path, provider: str) -> str:
    """Say in words what ``NNAPI`` or ``CoreML`` would run of an ``.onnx`` file.

    onnxruntime's own checker compares the graph with its lists of operators; nothing is run.
    """
    # onnxruntime.tools imports torch if it is installed
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    model = read_proto(model_path)
    model = onnx.shape_inference.infer_shapes(model)
    if provider == "NNAPI":
        partitions = checker.check_nnapi_partitions(model, True)
    else:
        operators = "coreml_supported_mlprogram_ops.md"
        partitions = checker.check_coreml_partitions(model, False, operators)
    why = ""
    if partitions.unsupported_ops:
        lacking = sorted(name.split(":")[1] for name in partitions.unsupported_ops)
        why += f"; it lacks {', '.join(lacking)}"
    if partitions.nodes_unsupported_due_to_dynamic_input:
        why += f"; {partitions.nodes_unsupported_due_to_dynamic_input} nodes have no fixed shape"
    parts = "1 part" if partitions.num_partitions == 1 else f"{partitions.num_partitions} parts"
    return (
        f"{provider}: {_VERDICTS[partitions.suitability().name.lower()]}. It would run "
        f"{partitions.num_supported_nodes} of {partitions.num_nodes} nodes in {parts}{why}."
    )
