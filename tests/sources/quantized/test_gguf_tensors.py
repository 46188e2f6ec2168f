"""Which parameters the quantized tensors of a GGUF file are."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import write_gguf

from edgetie.errors import SourceError
from edgetie.sources.load import load_source


def kinds(name: str) -> str:
    return "Q8_0" if name == "token_embd" else "Q4_K" if "attn" in name else "Q4_1"


def test_dequantized_tensors_are_the_parameters_whose_rows_transformers_moves(
    tmp_path: Path,
) -> None:
    """It moves those of queries and keys."""
    path = write_gguf(tmp_path / "model.gguf", tables=None, types=kinds, width=256)
    source = load_source(str(path))
    parameters = dict(source.module.named_parameters())
    assert len(source.quantized) == 15
    for name, tensor in source.quantized.items():
        np.testing.assert_array_equal(tensor.dequantize(), parameters[name].detach().numpy())
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    query = source.quantized["model.layers.0.self_attn.q_proj.weight"]
    in_file = gguf.dequantize(stored["blk.0.attn_q.weight"].data, gguf.GGMLQuantizationType.Q4_K)
    assert not np.array_equal(query.dequantize(), in_file)
    assert sorted(query.dequantize()[:, 0]) == sorted(in_file[:, 0])


def test_a_type_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tables=None, types=kinds, width=256)
    ternary = gguf.quants.quantize(np.ones((256, 512), np.float32), gguf.GGMLQuantizationType.TQ2_0)
    replaced = {"blk.0.ffn_down.weight": ternary}
    rewrite(path, replaced)
    with pytest.raises(SourceError, match=r"blk\.0\.ffn_down\.weight of type TQ2_0 .*dequantize"):
        load_source(str(path))
    assert load_source(str(path), dequantize=True).quantized == {}


def rewrite(path: Path, replaced: dict[str, np.ndarray]) -> None:
    """Write a file again with tensors of type TQ2_0 in place of others."""
    reader = gguf.GGUFReader(str(path))
    writer = gguf.GGUFWriter(str(path.with_suffix(".new")), "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        data = replaced.get(tensor.name)
        kind = tensor.tensor_type if data is None else gguf.GGMLQuantizationType.TQ2_0
        data = np.array(tensor.data) if data is None else data
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)
