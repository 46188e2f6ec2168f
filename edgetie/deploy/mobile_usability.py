"""Estimate how much of a model a mobile execution provider would run.

onnxruntime's own checker compares the graph with its lists of operators; nothing is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.tools.mobile_helpers import usability_checker as checker


@dataclass(frozen=True)
class Usability:
    """What one provider would run of a model.

    Attributes:
        provider: its name.
        nodes: number of nodes of the graph.
        supported: number of nodes it would run.
        partitions: connected parts they form; between these, data goes to the CPU and back.
        missing_operators: operators that it lacks.
        dynamic: nodes it cannot run only because their shapes are not fixed.
        advice: whether to try it: ``yes``, ``maybe`` or ``no``.
    """

    provider: str
    nodes: int
    supported: int
    partitions: int
    missing_operators: tuple[str, ...]
    dynamic: int
    advice: str

    def sentence(self) -> str:
        """Say it in words."""
        verdict = {"yes": "worth using", "maybe": "worth measuring", "no": "use the CPU instead"}
        reasons = []
        if self.missing_operators:
            reasons.append(f"it lacks {', '.join(self.missing_operators)}")
        if self.dynamic:
            reasons.append(f"{self.dynamic} nodes have no fixed shape")
        why = f"; {'; '.join(reasons)}" if reasons else ""
        parts = "1 part" if self.partitions == 1 else f"{self.partitions} parts"
        return (
            f"{self.provider}: {verdict[self.advice]}. It would run {self.supported} of "
            f"{self.nodes} nodes in {parts}{why}."
        )


def usability(model_path: Path, provider: str) -> Usability:
    """Ask onnxruntime's checker about an ``.onnx`` file and ``NNAPI`` or ``CoreML``."""
    model = onnx.load(model_path, load_external_data=False)
    model = onnx.shape_inference.infer_shapes(model)
    if provider == "NNAPI":
        partitions = checker.check_nnapi_partitions(model, True)
    else:
        operators = "coreml_supported_mlprogram_ops.md"
        partitions = checker.check_coreml_partitions(model, False, operators)
    return Usability(
        provider,
        partitions.num_nodes,
        partitions.num_supported_nodes,
        partitions.num_partitions,
        tuple(sorted(name.split(":")[1] for name in partitions.unsupported_ops)),
        partitions.nodes_unsupported_due_to_dynamic_input,
        partitions.suitability().name.lower(),
    )
