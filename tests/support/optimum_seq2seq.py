"""Reads an encoder-decoder bundle with optimum: python optimum_seq2seq.py BUNDLE TOKENS PROMPT.

The prompt is JSON, and so are the answer's tokens behind the start, which are printed.
"""

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM

bundle, tokens, prompt = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
ids = torch.tensor([prompt])
answer = ORTModelForSeq2SeqLM.from_pretrained(bundle).generate(
    ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
    do_sample=False, num_beams=1,
)  # fmt: skip
print(json.dumps(answer[0].tolist()))
