"""Write ``genai_config.json``, with which onnxruntime-genai runs a bundle."""

import json
from pathlib import Path
from typing import Any

from edgetie.bundle.embedding_graphs import EMBEDDING, EMBEDS, FEATURES, VISION
from edgetie.bundle.manifest import Signature
from edgetie.bundle.merged_decoder import MERGED
from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import GENAI_PROCESSOR, GENERATION_CONFIG, MODEL
from edgetie.export.genai_processor import write_genai_processor
from edgetie.export.tasks.base import Task
from edgetie.export.tasks.image_lm import ImageTask

_IMAGE_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id")
_PATCH_SIZES = ("spatial_merge_size", "patch_size")
_TOKENS = "input_ids"
_OPTIONS = {"log_id": "edgetie", "provider_options": []}


def write_genai_config(
    directory: Path, config: Any, task: Task, signature: Signature, columns: int | None = None
) -> bool:
    """Write the file if onnxruntime-genai can run the graphs; return whether it can.

    It needs one shape for the caches of all layers, and sizes from a transformers configuration. A
    model of text needs a KV cache bound in place. The type of a model of images is that of its
    configuration; onnxruntime-genai refuses those that it does not know.

    Args:
        directory: of the bundle, with its generation configuration.
        config: of the model.
        task: what the model does.
        signature: of the decoder.
        columns: of ``inputs_embeds`` if :func:`write_embedding_graphs` wrote graphs.
    """
    kind = "decoder"
    if isinstance(task, ImageTask):
        kind = getattr(config, "model_type", "")
        supported = columns is not None
    else:
        supported = signature.cache_in_place and config is not None
    shapes = {tensor.sizes for tensor in task.cache}
    if not supported or len(shapes) != 1:
        return False
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not all(hasattr(text, name) for name in ("hidden_size", "num_attention_heads")):
        return False  # not a transformers configuration
    kv_heads, _, head_size = shapes.pop()
    context = task.max_positions or 2048
    sizes = {
        "hidden_size": columns or text.hidden_size,
        "head_size": head_size,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": task.cached_attentions,
    }
    model = {
        "type": kind,
        "vocab_size": task.vocab_size,
        "context_length": context,
        **_special_tokens(directory, text, signature.eos_token_ids),
    }
    if isinstance(task, ImageTask):
        axes = ["position_ids"] if task.position_axes else []
        inputs = _same_names(EMBEDS, "attention_mask", *axes)
        graphs = _image_graphs(config, task)
        if write_genai_processor(directory):
            graphs["vision"]["config_filename"] = GENAI_PROCESSOR
        model |= {"decoder": _decoder(MERGED, sizes, inputs), **graphs}
    else:
        model["decoder"] = _decoder(MODEL, sizes, _same_names(_TOKENS, "attention_mask"))
    data = {
        "model": model,
        "search": {
            "max_length": context,
            "past_present_share_buffer": signature.cache_in_place,
            "do_sample": False,
        },
    }
    (directory / "genai_config.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return True


def _special_tokens(directory: Path, text: Any, ends: list[int]) -> dict[str, Any]:
    """Describe the tokens around texts. One for padding is required, so it may be another one."""
    generation = read_json(directory / GENERATION_CONFIG)
    pads = (getattr(text, "pad_token_id", None), generation.get("pad_token_id"), *ends, 0)
    pad = next(token for token in pads if token is not None)
    start = getattr(text, "bos_token_id", None)
    return {
        "bos_token_id": start if start is not None else pad,
        **({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}),
        "pad_token_id": pad,
    }


def _decoder(file: str, sizes: dict[str, int], inputs: dict[str, str]) -> dict[str, Any]:
    return {
        "filename": file,
        "session_options": _OPTIONS,
        **sizes,
        "inputs": {
            **inputs,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _image_graphs(config: Any, task: ImageTask) -> dict[str, Any]:
    """Describe the graphs of images and embeddings, and the tokens around images."""
    vision = config.vision_config
    return {
        **{name: token for name in _IMAGE_TOKENS if (token := getattr(config, name, None))},
        "image_token_id": task.image_token_id,
        "embedding": {
            "filename": EMBEDDING,
            "session_options": _OPTIONS,
            "inputs": _same_names(_TOKENS, FEATURES),
            "outputs": _same_names(EMBEDS),
        },
        "vision": {
            "filename": VISION,
            "session_options": _OPTIONS,
            **{name: getattr(vision, name) for name in _PATCH_SIZES if hasattr(vision, name)},
            "inputs": _same_names(*task.image.names),
            "outputs": _same_names(FEATURES),
        },
    }


def _same_names(*names: str) -> dict[str, str]:
    """Describe inputs or outputs that have the runtime's names."""
    return {name: name for name in names}
