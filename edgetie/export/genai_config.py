"""Write ``genai_config.json``, with which onnxruntime-genai runs a bundle."""

import json
from pathlib import Path
from typing import Any

from edgetie.bundle.manifest import Signature
from edgetie.bundle.names import MODEL
from edgetie.export.tasks.base import Task


def write_genai_config(directory: Path, config: Any, task: Task, signature: Signature) -> bool:
    """Write the file if onnxruntime-genai supports the model; return whether it does.

    It needs one shape for the caches of all layers, a KV cache bound in place, and sizes from a
    transformers configuration.
    """
    if not signature.cache_in_place or config is None:
        return False
    shapes = {tensor.sizes for tensor in task.cache}
    if len(shapes) != 1:
        return False
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not all(hasattr(text, name) for name in ("hidden_size", "num_attention_heads")):
        return False  # not a transformers configuration
    kv_heads, _, head_size = shapes.pop()
    context = task.max_positions or 2048
    ends = signature.eos_token_ids
    pad = next((i for i in (getattr(config, "pad_token_id", None), *ends, 0) if i is not None), 0)
    start = getattr(config, "bos_token_id", None)
    data = {
        "model": {
            "type": "decoder",
            "vocab_size": task.vocab_size,
            "context_length": context,
            "bos_token_id": start if start is not None else pad,
            **({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}),
            "pad_token_id": pad,
            "decoder": {
                "filename": MODEL,
                "session_options": {"log_id": "edgetie", "provider_options": []},
                "hidden_size": text.hidden_size,
                "head_size": head_size,
                "num_attention_heads": text.num_attention_heads,
                "num_key_value_heads": kv_heads,
                "num_hidden_layers": task.cached_attentions,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": context, "past_present_share_buffer": True, "do_sample": False},
    }
    (directory / "genai_config.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return True
