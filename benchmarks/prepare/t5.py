"""A random checkpoint of T5-small's shape: encoder, decoder and head share one matrix."""

from __future__ import annotations

import sys

import torch
import transformers

torch.manual_seed(0)
config = transformers.T5Config(decoder_start_token_id=0)
transformers.T5ForConditionalGeneration(config).save_pretrained(sys.argv[1])
