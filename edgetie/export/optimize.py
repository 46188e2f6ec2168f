"""Run the graph passes on traced models."""

from collections.abc import Mapping
from itertools import chain

import onnx_ir as ir

from edgetie.errors import TieError
from edgetie.export.tasks.base import Task
from edgetie.passes.base import GraphPass, PassReport, run_passes
from edgetie.passes.cancel_transposes import CancelTransposes
from edgetie.passes.clean_up import CleanUp
from edgetie.passes.fuse_activation import FuseActivation
from edgetie.passes.fuse_rms_norm import FuseRmsNorm
from edgetie.passes.fuse_rotary import FuseRotary
from edgetie.passes.fuse_skip_norm import FuseSkipNorm
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.merge_duplicates import MergeDuplicates
from edgetie.passes.pack_projections import PackProjections
from edgetie.passes.select_last_token import SelectLastToken
from edgetie.passes.tied_head_gemm import TiedHeadGemm
from edgetie.passes.widen_bfloat16 import WidenBfloat16
from edgetie.sources.quantized.tensor import QuantizedTensor
from edgetie.ties.groups import find_ties, is_named


def optimize(
    models: Mapping[str, ir.Model],
    task: Task,
    parameters: list[tuple[str, ...]],
    *,
    fused: bool,
    quantized: Mapping[str, QuantizedTensor] | None = None,
) -> list[PassReport]:
    """Run the graph passes on traced models, in place; ties are verified after each.

    Args:
        models: by file name.
        task: for the longest sequence, which sizes the rotary tables.
        parameters: names of tied parameters, group by group.
        fused: whether the target supports ONNX Runtime's fused operators.
        quantized: weights that the source has quantized, by the names of parameters.

    Raises:
        TieError: naming the pass that separated a weight.
    """
    reports: list[PassReport] = []
    shared = [names for names in parameters if _count_uses(models, names) > 1]
    for model in models.values():
        passes = [CleanUp(), WidenBfloat16(), MergeDuplicates(), CleanUp(fold=False)]
        reports += run_passes(model, [], passes)
    _require_module_ties(models, shared)
    across = [names for names in shared if _count_graphs(models, names) > 1]
    for model in models.values():
        fusions: list[GraphPass] = [GemmToMatMul(), FuseRmsNorm()]
        fusions += [FuseRotary(task.max_positions)] if fused else []
        fusions += [CancelTransposes(), SelectLastToken()]
        fusions += (
            [FuseSkipNorm(), FuseActivation(), PackProjections(across, quantized)] if fused else []
        )
        fusions += [TiedHeadGemm(), CleanUp(fold=False)]
        reports += run_passes(model, find_ties(model, parameters), fusions)
    return reports


def _count_uses(models: Mapping[str, ir.Model], names: tuple[str, ...]) -> int:
    """Count the uses of a parameter in traced graphs, from which unused results are removed."""
    return sum(
        len(value.uses())
        for model in models.values()
        for value in model.graph.initializers.values()
        if is_named(str(value.name), names)
    )


def _count_graphs(models: Mapping[str, ir.Model], names: tuple[str, ...]) -> int:
    return sum(
        any(is_named(name, names) for name in model.graph.initializers) for model in models.values()
    )


def _require_module_ties(models: Mapping[str, ir.Model], parameters: list[tuple[str, ...]]) -> None:
    """Check that each tied parameter is one initializer, used twice in a graph or in two graphs."""
    groups = chain.from_iterable(find_ties(model, parameters) for model in models.values())
    tied = {name for group in groups for name in group.parameters}
    for names in parameters:
        count = _count_graphs(models, names)  # 0 if its results are not used
        if not set(names) & tied and count == 1:
            raise TieError(
                f"torch.onnx: {' = '.join(names)} is one parameter in torch, but not a shared "
                "initializer in the exported graph"
            )
