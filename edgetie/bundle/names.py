"""Names of files, tensors, tasks and nodes in a bundle."""

from __future__ import annotations

MANIFEST = "edgetie.json"
MODEL = "model.onnx"
ENCODER = "encoder_model.onnx"
DECODER = "decoder_model.onnx"
DATA = "model.onnx.data"
PREFILL = "prefill_model.onnx"
"""The graph for prompts of a decoder with fixed shapes. It shares the decoder's weights."""
CONFIGURATIONS = ("generation_config.json", "config.json")
"""Files with settings of a model, by priority."""
PROCESSOR = "processor_config.json"
"""Settings of an audio model's prompt."""
ENCODER_MASK = "encoder_attention_mask"
"""Input of a decoder whose encoder has an attention mask."""
AUDIO = "audio_embeds"
"""Output of an audio encoder and input of its decoder: embeddings that replace tokens."""
FEATURES_MASK = "input_features_mask"
"""Input of an audio encoder: 0 for features that are padding."""
FORMAT = 2
SPEECH = "speech-seq2seq"
"""The task of an encoder-decoder model for speech."""
AUDIO_LM = "audio-lm"
"""The task of a language model with an audio encoder."""
LAST_TOKEN_NODE = "edgetie.last_token"
"""Name of the GatherND node that selects the last token. Without it logits are ``all``."""
