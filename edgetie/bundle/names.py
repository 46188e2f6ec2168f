"""Names of files, tensors, tasks and nodes in a bundle."""

from __future__ import annotations

MANIFEST = "edgetie.json"
MODEL = "model.onnx"
ENCODER = "encoder_model.onnx"
DECODER = "decoder_model.onnx"
DATA = "model.onnx.data"
PREFILL = "prefill_model.onnx"
"""Beside a decoder of fixed shapes, the graph that reads prompts; both share their weights."""
CONFIGURATIONS = ("generation_config.json", "config.json")
"""Where settings of a model are looked for, the first one first."""
PROCESSOR = "processor_config.json"
"""How a model that hears is asked about a sound."""
ENCODER_MASK = "encoder_attention_mask"
"""Input of a decoder whose encoder reads a mask."""
AUDIO = "audio_embeds"
"""Output of an encoder whose rows take the places of tokens: input of the decoder beside it."""
FEATURES_MASK = "input_features_mask"
"""Input of such an encoder, 0 where features are padding."""
FORMAT = 2
SPEECH = "speech-seq2seq"
"""The task of an encoder-decoder model that hears."""
AUDIO_LM = "audio-lm"
"""The task of a decoder of tokens with an encoder of sound beside it."""
LAST_TOKEN_NODE = "edgetie.last_token"
"""Name of the GatherND node that keeps each row's last token; without it logits are ``all``."""
