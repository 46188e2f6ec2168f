"""Write small GGUF files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

VOCAB, WIDTH, HEADS, KEYS, LAYERS = 320, 64, 4, 2, 2
SIZE = WIDTH // HEADS
FREQUENCIES = np.linspace(1, 8, SIZE // 2).astype(np.float32)


def write_gguf(
    path: Path,
    *,
    scaling: tuple[str, float] | None = None,
    tables: dict[str, np.ndarray] | None,
    layers: int = LAYERS,
) -> Path:
    """A small Llama, without a tokenizer; the same weights each time."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(SIZE)
    writer.add_vocab_size(VOCAB)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling[0]))
        writer.add_rope_scaling_factor(scaling[1])
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (VOCAB, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (WIDTH,),
                "ffn_norm": (WIDTH,),
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (KEYS * SIZE, WIDTH),
                "attn_v": (KEYS * SIZE, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_gate": (128, WIDTH),
                "ffn_up": (128, WIDTH),
                "ffn_down": (WIDTH, 128),
            }.items()
        }
    for name, shape in shapes.items():
        array = 0.3 * rng.standard_normal(shape) + (len(shape) == 1)
        writer.add_tensor(f"{name}.weight", array.astype(np.float32))
    for name, table in (tables or {}).items():
        writer.add_tensor(name, table)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
