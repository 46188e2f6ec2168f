"""Store weights as a quantized checkpoint has them, instead of rounding them again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgetie.errors import ExportError
from edgetie.passes.base import run_passes
from edgetie.passes.fold_constants import FoldConstants
from edgetie.passes.gemm_to_matmul import GemmToMatMul
from edgetie.passes.remove_flatten_reshapes import RemoveFlattenReshapes
from edgetie.quantize.formats.matmul_nbits import MatMulNBitsFormat
from edgetie.quantize.model_quantizer import same_bytes
from edgetie.quantize.quantize_weights import QuantizeWeightsPass
from edgetie.sources.quantized.tensor import QuantizedTensor, find_quantized
from edgetie.targets import find_scheme
from edgetie.ties.groups import JOINT


@dataclass(frozen=True)
class KeptWeights:
    """What is stored as the checkpoint has it.

    Attributes:
        same: initializers that share the bytes of others.
        bits: of most values.
        types: number of weights by their type in the checkpoint.
        blocks: number of weights by block size.
    """

    same: dict[ir.Value, ir.Value]
    bits: int
    types: dict[str, int]
    blocks: dict[str, int]


def require_keepable(name: str, target: str, precision: str) -> None:
    """Refuse what has no operators for quantized weights of a checkpoint.

    Args:
        name: of the model.
        target: a name of :data:`~edgetie.targets.TARGETS`.
        precision: of the export.

    Raises:
        ExportError: if the target or the precision is such.
    """
    what = None
    if not find_scheme(target).has_blocks:
        what = f"target {target} does not run blocks of weights"
    elif precision != "fp32":
        what = f"{precision} is a precision of weights that are not quantized"
    if what is not None:
        raise ExportError(
            f"{name}: its weights are quantized, and {what}; export it in floating point",
            advice={"dequantize": True},
        )


def with_tied_names(
    tensors: Mapping[str, QuantizedTensor], parameters: Sequence[tuple[str, ...]]
) -> dict[str, QuantizedTensor]:
    """Return quantized tensors by all names of their parameters, of which ``parameters`` lists the
    tied ones, group by group.
    """
    groups = {name: names for names in parameters for name in names}
    return {each: tensor for name, tensor in tensors.items() for each in groups.get(name, (name,))}


def keep_quantized(
    models: Mapping[str, ir.Model],
    tensors: Mapping[str, QuantizedTensor],
    same: Mapping[ir.Value, ir.Value],
) -> KeptWeights:
    """Replace the float weights of models by the quantized ones of a checkpoint, in place.

    Args:
        models: by file name.
        tensors: weights that the checkpoint has quantized, by all names of their parameters.
        same: initializers of later models that share the bytes of one of an earlier model.

    Raises:
        ExportError: if an operator without a quantized form reads one of these weights.
    """
    passes = {}
    shared = {str(value.name) for value in same}
    kept: set[int] = set()
    for file, model in models.items():
        names = [str(name) for name in model.graph.initializers]
        stored = {n: t for n in names if (t := find_quantized(n, tensors)) is not None}
        run_passes(model, [], [GemmToMatMul(), RemoveFlattenReshapes()])
        passes[file] = each = QuantizeWeightsPass(
            MatMulNBitsFormat(),
            MatMulNBitsFormat(),
            {},
            excluded=[name for name in names if name not in stored],
            linear_in_others=shared,
            stored=stored,
        )
        run_passes(model, [], [each, FoldConstants()])
        if each.float_weights:
            name, users = next(iter(each.float_weights.items()))
            raise _not_kept(name, stored[name], users)
        parts = [part for name in each.initializers for part in name.split(JOINT)]
        kept.update(id(find_quantized(part, tensors)) for part in parts)
    for name, tensor in tensors.items():
        if id(tensor) not in kept:
            raise _not_kept(name, tensor, "no MatMul or Gather reads it")
    stored_once = {id(tensor): tensor for tensor in tensors.values()}.values()
    bits = Counter[int]()
    for tensor in stored_once:
        bits[tensor.bits] += tensor.values.size
    return KeptWeights(
        same_bytes(models, passes, shared),
        bits.most_common(1)[0][0],
        dict(Counter(tensor.type for tensor in stored_once)),
        dict(Counter(str(tensor.block) for tensor in stored_once)),
    )


def _not_kept(name: str, tensor: QuantizedTensor, why: str) -> ExportError:
    return ExportError(
        f"{name} of type {tensor.type} cannot be kept as it is quantized ({why}); export it in "
        "floating point, and quantize that",
        advice={"dequantize": True},
    )
