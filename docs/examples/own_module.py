"""Export a hand-written module with tied embeddings, quantize it, and generate tokens.

python own_module.py OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import edgetie


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*qkv, is_causal=True)
        return x + self.output(attended.transpose(1, 2).reshape(batch, length, hidden))


class Decoder(nn.Module):
    """A decoder whose head is its embedding."""

    def __init__(self, vocabulary: int = 512, hidden: int = 64, positions: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(positions, hidden)
        self.blocks = nn.ModuleList(Block(hidden, 4) for _ in range(2))
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        self.head.weight = self.embedding.weight  # the tie

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids) + self.positions(position_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make_model() -> nn.Module:
    """Return what ``edgetie export own_module:make_model`` exports."""
    torch.manual_seed(0)
    return Decoder().eval()


def main(output: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    report = edgetie.export_model("own_module:make_model", output / "fp32")
    for group in report.manifest.ties:
        print(f"{group.name}: {len(group.uses)} uses, {group.bytes:,} bytes")
    edgetie.quantize_model(output / "fp32", output / "int8")
    session = edgetie.open_session(output / "int8")
    for step in edgetie.generate(session, [[1, 2, 3]], max_new_tokens=8):
        print(int(step.tokens[0]), end=" ")
    print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
