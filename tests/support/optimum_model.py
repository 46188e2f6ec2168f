"""Reads a bundle with optimum: python optimum_model.py BUNDLE PROMPT TOKENS."""

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

bundle, content, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
ids = AutoTokenizer.from_pretrained(bundle).apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, return_tensors="pt"
)
text = ORTModelForCausalLM.from_pretrained(bundle).generate(
    ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
    do_sample=False,
)  # fmt: skip
print(json.dumps(text[0, ids.shape[1] :].tolist()))
