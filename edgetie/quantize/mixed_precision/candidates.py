"""Write every version of each weight once, and a graph for each choice of precisions."""

from collections import Counter
from collections.abc import Collection, Mapping

import onnx_ir as ir

from edgetie.bundle.bundle import Bundle
from edgetie.graph.model_files import write_models
from edgetie.quantize.model_quantizer import ModelQuantizer, QuantizedModels, copy_model

QUANTIZED, HIGHER_PRECISION, FLOAT = "quantized.data", "higher_precision.data", "float.data"
"""Temporary files with the versions of all weights."""

Tensors = dict[str, ir.TensorProtocol]


class MixedPrecisionCandidates:
    """A quantized bundle whose weights can have a higher precision, or stay in floating point.

    Args:
        bundle: its model files are replaced for each candidate.
        quantizer: makes the graphs; it is preprocessed.

    Attributes:
        float_bytes: bytes that a weight adds if it stays in floating point, by its name. A weight
            of several models is not among them: it would no longer be tied.
        higher_precision_bytes: bytes that a weight adds in its higher precision, if it has one.
        embeddings: names of the quantized embeddings.
        scheme_bytes: bytes of all weights as the scheme quantizes them.
    """

    def __init__(self, bundle: Bundle, quantizer: ModelQuantizer) -> None:
        self.bundle, self.quantizer = bundle, quantizer
        first = quantizer.quantize(copy=True)
        self.embeddings = sorted({name for names in first.embeddings.values() for name in names})
        write_models(first.models, bundle.directory, data=QUANTIZED, same=first.same)
        self._quantized = {file: _tensors(model) for file, model in first.models.items()}
        self.scheme_bytes = sum(
            tensor.nbytes for tensors in self._quantized.values() for tensor in tensors.values()
        )
        uses = Counter(name for names in first.linear_initializers.values() for name in names)
        self._initializers = {
            file: {name: parts for name, parts in names.items() if uses[name] == 1}
            for file, names in first.linear_initializers.items()
        }
        self._higher_precision: dict[str, dict[str, Tensors]] = {file: {} for file in first.models}
        self._float: dict[str, Tensors] = {file: {} for file in first.models}
        self.float_bytes: dict[str, int] = {}
        self.higher_precision_bytes: dict[str, int] = {}

    def write_versions(self) -> None:
        """Write the float and the higher-precision version of each weight."""
        models = {file: copy_model(model) for file, model in self.quantizer.models.items()}
        write_models(models, self.bundle.directory, data=FLOAT, same={})
        for file, weights in self._initializers.items():
            names, tensors = {*self.embeddings, *weights}, _tensors(models[file])
            self._float[file] = {name: each for name, each in tensors.items() if name in names}
            for name in weights:
                self.float_bytes[name] = self._added_bytes(file, name, {name: tensors[name]})
        if not self.quantizer.has_higher_precision:
            return
        result = self.quantizer.quantize(higher_precision=[*self.float_bytes], copy=True)
        write_models(result.models, self.bundle.directory, data=HIGHER_PRECISION, same=result.same)
        for file, weights in self._initializers.items():
            tensors = _tensors(result.models[file])
            for name in weights:
                parts = {part: tensors[part] for part in result.linear_initializers[file][name]}
                self._higher_precision[file][name] = parts
                self.higher_precision_bytes[name] = self._added_bytes(file, name, parts)

    def _added_bytes(self, file: str, name: str, tensors: Tensors) -> int:
        quantized = [self._quantized[file][part].nbytes for part in self._initializers[file][name]]
        return sum(tensor.nbytes for tensor in tensors.values()) - sum(quantized)

    def write(
        self, float_weights: Collection[str] = (), higher_precision: Collection[str] = ()
    ) -> QuantizedModels:
        """Replace the bundle's model files, weights of these names in another precision."""
        result = self.quantizer.quantize(float_weights, higher_precision, copy=True)
        self._save(result.models, float_weights, higher_precision)
        return result

    def write_toggle_graph(self) -> None:
        """Replace the bundle's model files by ones that quantize one weight at a time, chosen by
        its index in ``float_bytes``.
        """
        models = self.quantizer.toggle_graph(list(self.float_bytes), self._float)
        self._save(models, self.embeddings)

    def _save(
        self,
        models: Mapping[str, ir.Model],
        float_weights: Collection[str],
        higher_precision: Collection[str] = (),
    ) -> None:
        """Write graphs whose initializers are those that are in the files already."""
        for file, model in models.items():
            written = dict(self._quantized[file])
            for name in higher_precision:
                written |= self._higher_precision[file].get(name, {})
            written |= {n: each for n, each in self._float[file].items() if n in float_weights}
            for name, value in model.graph.initializers.items():
                tensor = written.get(name)
                if tensor is not None and tensor.dtype == value.dtype:  # not if float16 now
                    value.const_value = tensor
            ir.save(model, self.bundle.directory / file)


def _tensors(model: ir.Model) -> Tensors:
    values = model.graph.initializers.values()
    return {str(v.name): v.const_value for v in values if v.const_value is not None}
