"""What mobile execution providers would take of a model, in plain words.

onnxruntime's own checker reads the graph and its lists of operators; nothing is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.tools.mobile_helpers import usability_checker as checker


@dataclass(frozen=True)
class Usability:
    """What one provider would take of a model.

    Attributes:
        provider: its name.
        nodes: of the graph.
        taken: those it would run.
        parts: connected pieces these are in: between them, data goes to the CPU and back.
        operators: that it lacks.
        dynamic: nodes that it leaves for their shapes alone.
        advice: whether to try it: ``yes``, ``maybe`` or ``no``.
    """

    provider: str
    nodes: int
    taken: int
    parts: int
    operators: tuple[str, ...]
    dynamic: int
    advice: str

    def sentence(self) -> str:
        """It in words."""
        verdict = {"yes": "worth using", "maybe": "worth measuring", "no": "use the CPU instead"}
        reasons = []
        if self.operators:
            reasons.append(f"it lacks {', '.join(self.operators)}")
        if self.dynamic:
            reasons.append(f"{self.dynamic} nodes have no fixed shape")
        why = f"; {'; '.join(reasons)}" if reasons else ""
        return (
            f"{self.provider}: {verdict[self.advice]}. It would run {self.taken} of {self.nodes} "
            f"nodes in {self.parts} {'piece' if self.parts == 1 else 'pieces'}{why}."
        )


def usability(model_path: Path, provider: str) -> Usability:
    """Ask onnxruntime's mobile usability checker, without the weights.

    Args:
        model_path: an ``.onnx`` file.
        provider: ``NNAPI`` or ``CoreML``.
    """
    model = onnx.load(model_path, load_external_data=False)
    model = onnx.shape_inference.infer_shapes(model)
    if provider == "NNAPI":
        found = checker.check_nnapi_partitions(model, True)
    else:
        file = "coreml_supported_mlprogram_ops.md"
        found = checker.check_coreml_partitions(model, False, file)
    return Usability(
        provider,
        found.num_nodes,
        found.num_supported_nodes,
        found.num_partitions,
        tuple(sorted(name.split(":")[1] for name in found.unsupported_ops)),
        found.nodes_unsupported_due_to_dynamic_input,
        found.suitability().name.lower(),
    )
