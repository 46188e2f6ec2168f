"""Judge whether the weights in a checkpoint are those of the model, and read renamed ones."""

import copy
import re
from collections.abc import Collection
from typing import Any

from edgetie.errors import SourceError

_START = r"^(?:(?:module|base_model\.model|_orig_mod|_fsdp_wrapped_module)\.)+"
_INSIDE = r"(?<=\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
"""Names that DistributedDataParallel, peft, torch.compile and others put before those of weights:
the first four at the start of a name, the last three also inside it."""

_ADAPTER_PARTS = re.compile(r"(?:^|\.)(?:lora_\w+|base_layer|modules_to_save)(?:\.|$)")


def find_renames(loading: dict[str, Any]) -> dict[str, str]:
    """Find what wrappers added to the names in a checkpoint.

    Args:
        loading: what transformers reports after loading: names of missing and unexpected weights.

    Returns:
        Regular expressions to replace in the names, as ``from_pretrained(key_mapping=...)`` takes
        them. Empty if nothing is missing, or the names differ in another way.
    """
    missing, unexpected = loading["missing_keys"], loading["unexpected_keys"]
    if not missing or not unexpected:
        return {}
    known = [each for each in (_START, _INSIDE) if any(re.search(each, n) for n in unexpected)]
    if known:
        return dict.fromkeys(known, "")
    prefix = _common_prefix(missing, unexpected)
    return {f"^{re.escape(prefix)}": ""} if prefix else {}


def _common_prefix(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """What stands before every name in the files, whose rest is the name of a missing weight."""
    first = min(unexpected)
    prefixes = (first.removesuffix(name) for name in missing if first.endswith(f".{name}"))
    prefix = min(prefixes, key=len, default="")
    return prefix if prefix and all(name.startswith(prefix) for name in unexpected) else None


def require_weights(
    text: str,
    loading: dict[str, Any],
    vocab_size: int | None = None,
    other_class: str | None = None,
) -> None:
    """Check that the files have all weights of the model, in its shapes, and no adapter.

    Args:
        text: the model's name, for messages.
        loading: what transformers reports after loading.
        vocab_size: number of tokens in the configuration.
        other_class: the class that the configuration names, if it is not a language model's.

    Raises:
        SourceError: if weights are missing or of another shape, or an adapter is not merged.
    """
    unexpected = sorted(loading["unexpected_keys"])
    adapter = next((name for name in unexpected if _ADAPTER_PARTS.search(name)), None)
    if adapter is not None:
        raise SourceError(
            f"{text}: its files have weights of an adapter ({adapter}); merge it into the model "
            "(peft's merge_and_unload) and export the result"
        )
    for name, in_file, in_model in sorted(loading["mismatched_keys"]):
        if vocab_size == in_model[0] != in_file[0] and in_file[1:] == in_model[1:]:
            raise SourceError(
                f"{text}: config.json has a vocab_size of {vocab_size:,}, but {name} has "
                f"{in_file[0]:,} rows in the files; set vocab_size to {in_file[0]} if the "
                "tokenizer's tokens fit, or repair the files"
            )
    mismatched = [
        f"{name} is {_shape(in_file)} there and {_shape(in_model)} in the model"
        for name, in_file, in_model in sorted(loading["mismatched_keys"])
    ]
    missing = sorted(loading["missing_keys"])
    why = "they are incomplete, or the model is of another kind"
    if other_class is not None:
        why = (
            f"they are those of {other_class}, as config.json says, and edgetie exports language "
            "models, whose head gives logits of tokens"
        )
    instead = f", which have {unexpected[0]} and others instead" if unexpected else ""
    for details, where in (
        (mismatched, "of another shape than those in its files"),
        (missing, f"not among those in its files{instead}"),
    ):
        if details:
            raise SourceError(
                f"{text}: {len(details)} weights of the model are {where} ({details[0]}, ...); "
                + why
            )


def _shape(sizes: Collection[int]) -> str:
    return "×".join(map(str, sizes))


def quantization_method(config: Any) -> str | None:
    """The name of the method by which a configuration says that weights are quantized."""
    if not isinstance(config, dict):
        return None
    is_bitsandbytes = config.get("load_in_4bit") or config.get("load_in_8bit")
    return str(config.get("quant_method") or ("bitsandbytes" if is_bitsandbytes else "unknown"))


def quantized_message(text: str, method: str) -> str:
    """Say that quantized weights cannot be read, and what to do instead."""
    return (
        f"{text}: its weights are quantized already ({method}), in a format that edgetie does not "
        "read; export the float model that it was made from, or a .gguf file of it, and quantize "
        "the bundle"
    )


def is_tied_by(config: Any) -> bool:
    """Whether a configuration ties the head to the embedding table."""
    configs = (config, config.get_text_config(decoder=True))
    return any(getattr(each, "tie_word_embeddings", False) for each in configs)


def untied(config: Any) -> Any:
    """Return a copy of a configuration that does not tie the head."""
    result = copy.deepcopy(config)
    for each in (result, result.get_text_config(decoder=True)):
        each.tie_word_embeddings = False
    return result


def tie_rounded_head(module: Any) -> None:
    """Tie a head to the table if the configuration ties them and they differ by a rounding only.

    Some tools store the head and the table in different precisions. The finer one is kept.
    """
    import torch

    if not is_tied_by(module.config):
        return
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    first, second = getattr(table, "weight", None), getattr(head, "weight", None)
    if first is None or second is None or first is second or first.shape != second.shape:
        return
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(first.to(dtype).float(), second):
            head.weight = first
            return
        if torch.equal(second.to(dtype).float(), first):
            table.weight = second
            return
