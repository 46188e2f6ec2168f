"""Write small models with quantized weights in safetensors, from the formats' specifications."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_ir as ir
import torch
from safetensors.torch import save_file

from edgetie.export.exporter import ExportReport, export_model
from edgetie.sources.load import load_source

Array = np.ndarray[Any, Any]
EMBEDDING = "model.embed_tokens"


@dataclass
class Integers:
    """A weight ``(N, K)`` of unsigned integers, groups of neighbouring columns of one size."""

    bits: int
    values: Array
    scales: Array
    zero_points: Array

    @property
    def group(self) -> int:
        return self.values.shape[1] // self.scales.shape[1]

    def dequantize(self) -> Array:
        scales, zero_points = (
            np.repeat(part, self.group, axis=1) for part in (self.scales, self.zero_points)
        )
        return (self.values.astype(np.float32) - zero_points) * scales


def random_integers(
    shape: tuple[int, int], bits: int, group: int | None, *, symmetric: bool = False, seed: int = 0
) -> Integers:
    """Integers of all sizes; scales that float16 and bfloat16 have too."""
    rng, (rows, columns) = np.random.default_rng(seed), shape
    blocks = rows, columns // (group or columns)
    values = rng.integers(0, 1 << bits, shape, np.uint8)
    scales = rng.integers(64, 128, blocks).astype(np.float32) * np.float32(2.0 ** -(6 + bits))
    middle = np.full(blocks, 1 << bits >> 1, np.uint8)
    low, high = (1 << bits) // 4, 3 * (1 << bits) // 4
    zero_points = middle if symmetric else rng.integers(low, high + 1, blocks).astype(np.uint8)
    return Integers(bits, values, scales, zero_points)


def pack_words(values: Array, bits: int) -> Array:
    """Pack the unsigned integers of each row to int32 words, the first ones lowest."""
    rows = []
    for row in values.tolist():
        number = sum(value << (bits * index) for index, value in enumerate(row))
        size = -(-len(row) * bits // 32) * 4
        rows.append(np.frombuffer(number.to_bytes(size, "little"), np.int32))
    return np.stack(rows)


def write_checkpoint(
    directory: Path,
    settings: dict[str, Any],
    layer: Callable[[str, tuple[int, int]], dict[str, Array]],
    *,
    kind: str = "Llama",
    quantized: Callable[[str], bool] = lambda name: "_proj" in name,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Save a small model with some weights replaced.

    Args:
        directory: a new one.
        settings: the ``quantization_config``.
        layer: returns the tensors, by their names after the module's, of a weight of a shape.
        kind: as in :func:`models.transformers_model`.
        quantized: whether a module is.
        metadata: for the header.
    """
    model = models.transformers_model(kind)
    model.save_pretrained(directory)
    tensors = {}
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and quantized(module):
            for suffix, array in layer(module, tuple(weight.shape)).items():
                tensors[f"{module}.{suffix}"] = torch.as_tensor(array).contiguous()
        elif not name.startswith("lm_head"):
            tensors[name] = weight.half()
    save_file(tensors, directory / "model.safetensors", {"format": "pt", **(metadata or {})})
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return directory


def check_kept(directory: Path, weights: dict[str, Integers]) -> None:
    """Check that a source has the integers, scales and zero points of weights, and their values."""
    source = load_source(str(directory))
    assert source.quantized.keys() == {f"{module}.weight" for module in weights}
    parameters = dict(source.module.named_parameters())
    for module, expected in weights.items():
        name = f"{module}.weight"
        kept, times = source.quantized[name], expected.group // source.quantized[name].block
        assert np.array_equal(kept.values, expected.values)
        assert np.array_equal(kept.scales, np.repeat(expected.scales, times, axis=1))
        assert np.array_equal(kept.zero_points, np.repeat(expected.zero_points, times, axis=1))
        assert np.array_equal(parameters[name].detach().numpy(), expected.dequantize())
    assert not hasattr(source.config, "quantization_config")
    floats = load_source(str(directory), dequantize=True)
    assert not floats.quantized
    for name, parameter in floats.module.named_parameters():
        assert torch.equal(parameter, parameters[name])


def check_exported(
    directory: Path, bundle: Path, weights: dict[str, Array], *, tied: bool = True
) -> ExportReport:
    """Export; check that the file has the integers of weights, and the logits are those of torch.

    Args:
        directory: of the checkpoint.
        bundle: to write.
        weights: unsigned integers by the names of modules.
        tied: whether the head and the embedding are one table.
    """
    report = export_model(str(directory), bundle)
    assert report.agreement.relative < 1e-3
    graph = ir.load(bundle / "model.onnx").graph
    stored = {}
    for node in graph:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        initializer = node.inputs[1 if node.op_type == "MatMulNBits" else 0]
        assert initializer is not None
        assert initializer.const_value is not None
        data = initializer.const_value.numpy()
        if node.attributes["bits"].as_int() == 4:
            data = np.stack([data & 15, data >> 4], axis=-1)
        stored[str(initializer.name)] = data.reshape(len(data), -1)
    rows = {}
    for joint, values in stored.items():
        modules = [
            next(module for module in weights if f".{part}".endswith(f".{module}.weight"))
            for part in joint.replace("lm_head", EMBEDDING.removeprefix("model.")).split("+")
        ]
        ends = np.cumsum([len(weights[module]) for module in modules])
        rows.update(zip(modules, np.split(values, ends[:-1]), strict=True))
    assert rows.keys() == weights.keys()
    for module, values in rows.items():
        assert np.array_equal(values, weights[module]), module
    assert bool(report.manifest.ties) == tied
    return report
