"""Write small GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

VOCAB, WIDTH, HEADS, KEYS, LAYERS = 320, 64, 4, 2, 2
SIZE = WIDTH // HEADS
FREQUENCIES = np.linspace(1, 8, SIZE // 2).astype(np.float32)


_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
           "IQ4_NL": (0,), "IQ4_XS": (0,)}  # fmt: skip
"""Where blocks have their 16-bit scale, and the scale of minimums."""


def quantized_rows(kind: str, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of bytes of a type: of the array, or random ones where gguf cannot quantize."""
    quantization = gguf.GGMLQuantizationType[kind]
    if kind not in _SCALES:
        return gguf.quants.quantize(array, quantization)
    size, bytes_ = gguf.GGML_QUANT_SIZES[quantization]
    blocks = rng.integers(0, 256, (array.size // size, bytes_), dtype=np.uint8)
    for place in _SCALES[kind]:
        scales = rng.uniform(5e-4, 1e-3, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(len(array), -1)


def write_gguf(
    path: Path,
    *,
    scaling: tuple[str, float] | None = None,
    tables: dict[str, np.ndarray] | None,
    layers: int = LAYERS,
    types: Callable[[str], str] = lambda name: "F32",
    width: int = WIDTH,
) -> Path:
    """A small Llama, without a tokenizer; the same weights each time.

    Args:
        path: of the file.
        scaling: type and factor of the rotary embedding's scaling.
        tables: further tensors.
        layers: that the header tells of; there are ``LAYERS``.
        types: the type of a matrix by its name.
        width: of the embedding.
    """
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_embedding_length(width)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(width // HEADS)
    writer.add_vocab_size(VOCAB)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling[0]))
        writer.add_rope_scaling_factor(scaling[1])
    keys = KEYS * width // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (VOCAB, width), "output_norm": (width,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (width,),
                "ffn_norm": (width,),
                "attn_q": (width, width),
                "attn_k": (keys, width),
                "attn_v": (keys, width),
                "attn_output": (width, width),
                "ffn_gate": (2 * width, width),
                "ffn_up": (2 * width, width),
                "ffn_down": (width, 2 * width),
            }.items()
        }
    for name, shape in shapes.items():
        array = 0.3 * rng.standard_normal(shape) + (len(shape) == 1)
        kind = types(name) if len(shape) == 2 else "F32"
        if kind == "F32":
            writer.add_tensor(f"{name}.weight", array.astype(np.float32))
            continue
        quantization = gguf.GGMLQuantizationType[kind]
        rows = quantized_rows(kind, array.astype(np.float32), rng)
        writer.add_tensor(f"{name}.weight", rows, raw_dtype=quantization)
    for name, table in (tables or {}).items():
        writer.add_tensor(name, table)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
