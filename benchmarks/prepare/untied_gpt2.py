"""A random model of GPT-2's shape from torch.onnx.export, its tie broken by onnxsim."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnxsim
import torch
import transformers


class Logits(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


exported = torch.onnx.export(
    Logits(),
    (torch.ones(1, 8, dtype=torch.long),),
    dynamo=True,
    opset_version=20,
    input_names=["input_ids"],
    output_names=["logits"],
    dynamic_shapes=({1: torch.export.Dim("sequence")},),
)
simplified, _ = onnxsim.simplify(exported.model_proto)
onnx.save(
    simplified, Path(sys.argv[1]) / "gpt2.onnx", save_as_external_data=True, location="gpt2.data"
)
