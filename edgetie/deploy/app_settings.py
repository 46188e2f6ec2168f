"""The settings of a starter: its model's files, conversation, sampling, inputs and cache."""

import hashlib
from dataclasses import asdict
from typing import Any

from edgetie.bundle.bundle import Bundle
from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import DATA, GENERATION_CONFIG, IMAGE_TO_TEXT
from edgetie.deploy.chat_format import ChatFormat
from edgetie.deploy.images.image_settings import image_settings, is_image_feed
from edgetie.deploy.ort_format import MODEL
from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.images.processor import ImageProcessor
from edgetie.runtime.text.tokenizer import Tokenizer


def app_settings(
    bundle: Bundle,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    *,
    ort_format: bool,
    process: ImageProcessor | None = None,
) -> dict[str, Any]:
    """Compose what ``app.json`` contains.

    Args:
        bundle: the model.
        tokenizer: of the model.
        chat: the format of its conversations.
        ort_format: whether the model is one ``.ort`` file.
        process: its image processor, if it reads images.

    Raises:
        BundleError: if the bundle's settings for generation are wrong.
    """
    signature = bundle.manifest.signature
    hashes = [f"{name} {entry['sha256']}" for name, entry in sorted(bundle.manifest.files.items())]
    caches = [value for value in signature.cache if not is_image_feed(value.name)]
    inputs = [v.name for v in signature.inputs if v not in caches and not is_image_feed(v.name)]
    model = f"model/{MODEL if ort_format else bundle.model_path.name}"
    prefix, suffix = ([], []) if tokenizer.chat_template is not None else tokenizer.surrounding
    images = None
    if process is not None:
        images = image_settings(bundle, process, tokenizer, chat)
        if bundle.task == IMAGE_TO_TEXT:
            chat, prefix, suffix = ChatFormat(), signature.start_token_ids, []
        elif process.prompt is not None and process.adds_start_token:
            chat, prefix, suffix = ChatFormat(process.prompt.token("bos_token"), "\n"), [], []
    conversation = asdict(chat)
    del conversation["notes"]
    return {
        "version": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "model": model,
        "weights": model if ort_format else f"model/{DATA}",
        "ort_format": ort_format,
        **conversation,
        "prefix": prefix,
        "suffix": suffix,
        "stop_tokens": sorted(set(signature.eos_token_ids)),
        **_generation_settings(bundle),
        "max_positions": signature.max_positions,
        "vocabulary": signature.vocab_size,
        "logits": signature.logits,
        "inputs": inputs,
        "cache": [v.name.removeprefix("past_key_values.") for v in caches],
        "cache_dtype": caches[0].dtype,
        "cache_heads": caches[0].shape[1],
        "cache_size": caches[0].shape[3],
        "cache_in_place": signature.cache_in_place,
        "packed": bundle.manifest.weights_in_memory == "prepacked",
        "optimize": bundle.manifest.weights_in_memory != "mapped",
        "images": images,
    }


def _generation_settings(bundle: Bundle) -> dict[str, Any]:
    """Read how the model's own settings sample: greedily unless they say otherwise."""
    path = bundle.directory / GENERATION_CONFIG
    stated = {k: v for k, v in read_json(path).items() if v is not None}
    values: dict[str, Any] = {"repetition_penalty": stated.get("repetition_penalty", 1.0)}
    if stated.get("do_sample"):
        values["temperature"] = stated.get("temperature", 1.0)
        values["top_k"] = stated.get("top_k", 50) or None  # 50 is transformers' default, 0 none
        values["top_p"] = stated.get("top_p")
    stops = stated.get("stop_strings", [])
    stops = [stops] if isinstance(stops, str) else stops
    try:
        sampling = Sampling(**values)
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise TypeError(f"stop_strings are {stops}")
    except (EdgetieError, TypeError) as error:
        raise BundleError(f"{path}: {error}; correct it in the model and export again") from error
    return {"sampling": asdict(sampling), "stop_strings": stops}
