"""Let transformers load quantized safetensors files in floating point, without other libraries."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetie.errors import SourceError
from edgetie.sources.patching import set_attributes
from edgetie.sources.quantized.methods.awq import read_awq
from edgetie.sources.quantized.methods.bitsandbytes import read_bitsandbytes
from edgetie.sources.quantized.methods.compressed_tensors import read_compressed_tensors
from edgetie.sources.quantized.methods.fp8 import read_fp8
from edgetie.sources.quantized.methods.gptq import read_gptq
from edgetie.sources.quantized.methods.torchao import read_torchao
from edgetie.sources.quantized.stored_tensors import StoredTensors
from edgetie.sources.quantized.tensor import QuantizedTensor
from edgetie.sources.quantized.weights import GroupedWeight, StoredWeight

_READERS: dict[
    str, Callable[[StoredTensors, Mapping[str, Any]], dict[str, StoredWeight] | None]
] = {
    "awq": read_awq,
    "bitsandbytes": read_bitsandbytes,
    "compressed-tensors": read_compressed_tensors,
    "fp8": read_fp8,
    "gptq": read_gptq,
    "torchao": read_torchao,
}

READ_METHODS = frozenset(_READERS)
"""Methods of quantizing whose weights are read here, as ``quantization_config`` names them."""


class UnreadFormatError(Exception):
    """The weights are quantized in a format that is not read."""


@dataclass
class QuantizedLoader:
    """Reads the weights of a quantized checkpoint.

    Args:
        text: the model's name, for messages.
        method: one of :data:`READ_METHODS`.
        settings: the configuration's ``quantization_config``.
        dequantize: whether weights need not be kept as they are quantized.
    """

    text: str
    method: str
    settings: Mapping[str, Any]
    dequantize: bool
    _weights: dict[str, StoredWeight] = field(default_factory=dict)
    _floats: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def replace_weights(self) -> Iterator[None]:
        """Let transformers load dequantized weights instead of those in the files.

        Raises:
            UnreadFormatError: in this context, if the weights have another format.
            SourceError: in this context, if a weight cannot be kept as it is quantized.
        """
        from transformers import PreTrainedModel

        load = PreTrainedModel._load_pretrained_model

        def load_floats(
            model: Any,
            state_dict: Any,
            checkpoint_files: list[str],
            *arguments: Any,
            **options: Any,
        ) -> Any:
            if state_dict is not None or not checkpoint_files[0].endswith(".safetensors"):
                raise UnreadFormatError
            with StoredTensors(checkpoint_files) as tensors:
                floats = self._read(tensors, model)
                return load(model, floats, None, *arguments, **options)

        with set_attributes(
            [(PreTrainedModel, "_load_pretrained_model", staticmethod(load_floats))]
        ):
            yield

    def _read(self, tensors: StoredTensors, model: Any) -> dict[str, Any]:
        import torch

        weights = _READERS[self.method](tensors, self.settings)
        if not weights:
            raise UnreadFormatError
        self._weights = weights
        columns_first = _columns_first(model)
        self._floats = {}
        for name, weight in weights.items():
            if not self.dequantize and weight.obstacle is not None:
                raise self._not_kept(name, weight.type, weight.obstacle)
            floats = torch.from_numpy(weight.dequantize())
            self._floats[name] = floats.T if name.endswith(columns_first) else floats
        return self._floats | tensors.remaining

    def quantized(self, module: Any) -> dict[str, QuantizedTensor]:
        """Return the quantized weights of a loaded module by the names of its parameters.

        Raises:
            SourceError: if the module has a weight in another form than the files.
        """
        if self.dequantize:
            return {}
        parameters = dict(module.named_parameters(remove_duplicate=False))
        names = {_place(parameter): name for name, parameter in module.named_parameters()}
        result = {}
        for name, weight in self._weights.items():
            floats = self._floats[name]
            place = _place(floats)
            if place not in names and name in parameters and floats.equal(parameters[name]):
                place = _place(parameters[name])  # a tied weight that is stored twice
            if place not in names:
                why = "the model has it in another form"
                raise self._not_kept(name, weight.type, why)
            assert isinstance(weight, GroupedWeight)  # others have an obstacle
            result[names[place]] = weight.in_blocks()
        return result

    def _not_kept(self, name: str, kind: str, why: str) -> SourceError:
        return SourceError(
            f"{self.text}: {name} of type {kind} cannot be kept as it is quantized ({why}); export "
            "it in floating point, and quantize that",
            advice={"dequantize": True},
        )


def _columns_first(model: Any) -> tuple[str, ...]:
    """Name the weights that a model has ``(in, out)``; quantized files have ``(out, in)``."""
    from transformers.pytorch_utils import Conv1D

    modules = model.named_modules()
    return tuple(f"{name}.weight" for name, each in modules if isinstance(each, Conv1D))


def _place(tensor: Any) -> tuple[object, ...]:
    """Tell tensors over different memory apart."""
    return tensor.data_ptr(), tensor.shape
