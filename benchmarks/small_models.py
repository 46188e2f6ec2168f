"""Small random models of every architecture that transformers knows, by one rule for all.

A configuration's own defaults are kept except for sizes, which are recognised by their names.
What no rule about names can tell stands in :data:`EXCEPTIONS`, by model type.
"""

from __future__ import annotations

import re
from typing import Any

import torch

LAYERS, HIDDEN, HEADS, HEAD_SIZE, INNER, VOCABULARY, WINDOW = 2, 64, 4, 16, 128, 512, 8
_LAYERS_OF_SEVERAL_KINDS = 4
_POSITIONS = 512
_EXPERTS = 4
_EXPERTS_CHOSEN = 2
_RANK = 32
_TABLE_STD = 0.25
_GAIN = 0.5

FAMILIES = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "speech-seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "image-text-to-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "image-to-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}
"""Names of transformers' tables: model type to class."""

PAIRS = {
    "vision-encoder-decoder (DeiT, TrOCR)": ("deit", "trocr"),
    "vision-encoder-decoder (Donut)": ("donut-swin", "mbart"),
    "vision-encoder-decoder (ViT, GPT-2)": ("vit", "gpt2"),
}
"""Encoders and decoders of models of one class, by a name for the pair."""

TIED_CHECKPOINTS = ("idefics3", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")
"""Model types that do not tie by default, but in well-known checkpoints."""

_IMAGE_TO_TEXT = {"blip"}
"""Model types with an image encoder and cross-attention whose configuration does not say so."""

RULES: dict[str, int] = {
    r"(.*_)?(num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers)": (
        LAYERS
    ),
    r"(.*_)?(attention_heads|num_heads|n_heads?)": HEADS,
    r"hidden_size|d_model|n_embd|emb_dim|embedding_size|dim|word_embed_proj_dim|lru_width": HIDDEN,
    r"pooler_hidden_size|backbone_hidden_size|out_hidden_size|projection_dim|embed_dim": HIDDEN,
    r"depth": LAYERS,
    r"(.*_)?(intermediate_size|ffn_dim|d_ff|dff|dim_ff|d_inner|ffn_hidden_size|mlp_dim)": INNER,
    r"(.*_)?(head_dim|d_kv|dim_head|d_head|kv_channels)|query_pre_attn_scalar": HEAD_SIZE,
    r"sliding_window|local_attention|attention_window|attention_window_size": WINDOW,
}
"""Names of a configuration's attributes, and the size that they get."""

LIMITS: dict[str, int] = {
    r"(?!.*type_)(.*_)?vocab_size(_per_layer_input)?|vocab_offset": VOCABULARY,
    r"max_position_embeddings|n_positions|max_seq_len": _POSITIONS,
    r"(.*_)?(num_experts|num_local_experts|n_routed_experts)": _EXPERTS,
    r"num_experts_per_tok|moe_k|moe_topk": _EXPERTS_CHOSEN,
    r"(?!embedding).*_rank": _RANK,
    r"hidden_size_per_layer_input": _RANK,
    r"linear_num_key_heads|num_dense_layers": 2,
    r"linear_num_value_heads": HEADS,
}
"""The same, for sizes that stay as they are where they are smaller."""

_PATCHES_PER_SIDE = 8
_ROTARY_SECTIONS = [2, 3, 3]
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_GEMMA4 = {"head_dim": HEAD_SIZE, "global_head_dim": 2 * HEAD_SIZE, "layer_types": _ALTERNATING}
_GEMMA4_SIZE = {"num_hidden_layers": len(_ALTERNATING)}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    # the default names rotary parameters for no layer type
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    # the last layers read the keys of earlier ones of their type
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": _ALTERNATING + _ALTERNATING[:2],
        "intermediate_size": INNER,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
        "num_kv_shared_layers": 2,
    },
    # full attention has heads of a size of its own
    "gemma4_text": _GEMMA4 | _GEMMA4_SIZE,
    "gemma4_unified_text": _GEMMA4 | _GEMMA4_SIZE,
    # the pattern of layers is no list with an item a layer
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "recurrent_gemma": {"num_hidden_layers": 4},
    # every shared layer needs one to share with
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
    },
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},
    # the adaptor has a quarter of the text model's width inside
    "fun_asr_nano": {
        "adaptor_config": {
            "hidden_size": HIDDEN,
            "intermediate_size": HIDDEN // 4,
            "num_attention_heads": HEADS,
            "projector_hidden_size": INNER,
        }
    },
    # the encoders' widths are not those that the projectors read by default
    "granite_speech_encoder": {"hidden_dim": HIDDEN},
    "granite_speech_plus_encoder": {"hidden_dim": HIDDEN},
    **{key: {"encoder_hidden_size": HIDDEN} for key in ("blip_2_qformer", "instructblip_qformer")},
    "qwen3_asr_encoder": {"output_dim": HIDDEN, "downsample_hidden_size": INNER},
    # checkpoints have one, the default has none
    **{key: {"image_token_index": VOCABULARY - 2} for key in ("blip-2", "instructblip")},
    "minicpm_ocr": {"image_token_id": VOCABULARY - 2},
    "qwen2_5_omni_thinker": {"vision_start_token_id": VOCABULARY - 5},
    "kimi_k25": {"projection_hidden_size": HIDDEN},
    # one of the layers that there are
    "sam_vision_model": {"global_attn_indexes": [0]},
    "ovis2": {"visual_indicator_token_ids": [VOCABULARY - 3 - i for i in range(5)]},
    # sections of rotary positions fill half of a head
    **{
        key: {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": _ROTARY_SECTIONS,
            }
        }
        for key in (
            "qwen2_vl_text",
            "qwen2_5_vl_text",
            "qwen3_vl_text",
            "qwen3_vl_moe_text",
            "paddleocr_vl_text",
            "qwen2_5_omni_text",
        )
    },
    # as many layers of the encoder as there are
    **{
        key: {"deepstack_visual_indexes": [0, 1]}
        for key in ("qwen3_vl_vision", "qwen3_vl_moe_vision")
    },
    # the tokens of an image follow from its size
    **{
        key: {"mm_tokens_per_image": _PATCHES_PER_SIDE**2 // 4}
        for key in ("gemma3", "gemma3n", "shieldgemma2", "t5gemma2_encoder")
    },
    # the width doubles from stage to stage
    "donut-swin": {
        "embed_dim": HIDDEN // 2,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "funnel": {"n_head": HEADS, "block_sizes": [1, 1], "block_repeats": [1, 1]},
    "xmod": {"default_language": "en_XX"},
}
"""What the rules cannot tell, by model type."""

_CAUSAL = ("is_decoder", "causal")  # without, BERT and XLM see what comes after
_DERIVED = {"per_layer_config"}
_MODES = {"block_sparse": "original_full"}
"""Attention that a short text switches to another, so that exporting is refused (BigBird), and what
it is switched to."""
_LISTS_OF_SIZES = {"intermediate_size", "attention_window"}


class NotBuilt(Exception):
    """transformers gives no model of this type without more being said; the text says what."""


def model_types(family: str) -> dict[str, str]:
    """The model types of a family and their classes, as the installed transformers lists them."""
    from transformers.models.auto import modeling_auto

    table = getattr(modeling_auto, FAMILIES[family])
    types = {key: name if isinstance(name, str) else name[0] for key, name in table.items()}
    if not family.startswith("image"):
        return types
    types |= dict.fromkeys(PAIRS, types["vision-encoder-decoder"])
    is_pair = family == "image-to-text"
    return {key: name for key, name in types.items() if _is_pair(key) == is_pair}


def _is_pair(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type in PAIRS or model_type in _IMAGE_TO_TEXT:
        return True
    return bool(getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False))


def default_config(model_type: str) -> Any:
    """The configuration that a model type has when nothing is said, tied as its checkpoints are.

    Raises:
        NotBuilt: if it cannot be made from nothing.
    """
    from transformers import VisionEncoderDecoderConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        if model_type in PAIRS:
            parts = [CONFIG_MAPPING[each]() for each in PAIRS[model_type]]
            return VisionEncoderDecoderConfig.from_encoder_decoder_configs(*parts)
        config = CONFIG_MAPPING[model_type]()
        for name, part in (getattr(config, "sub_configs", None) or {}).items():
            if name == "vision_config" and getattr(config, name, None) is None:
                setattr(config, name, getattr(part, "config_class", part)())
        return _as_checkpoints(config)
    except Exception as error:
        raise NotBuilt(f"no default configuration ({_last_line(error)})") from error


def _as_checkpoints(config: Any) -> Any:
    text = config.get_text_config(decoder=True)
    if config.model_type in TIED_CHECKPOINTS:
        text.tie_word_embeddings = True
    if getattr(text, "tie_word_embeddings", False):  # some classes read this one only
        config.tie_word_embeddings = True
    return config


def ties_by_default(config: Any) -> bool:
    """Whether a configuration, or that of its text model, asks for tied embeddings."""
    text = config.get_text_config(decoder=True)
    return any(bool(getattr(c, "tie_word_embeddings", False)) for c in (config, text))


def build(family: str, model_type: str) -> torch.nn.Module:
    """A small random model in fp32, in evaluation mode; always the same.

    Raises:
        NotBuilt: saying why there is none.
    """
    import transformers

    default = default_config(model_type)
    try:
        changes = reduced(default)
        for name in _CAUSAL if family == "causal-lm" else ():
            if getattr(default, name, None) is False:
                changes[name] = True
        attention = getattr(default, "attention_type", None)
        if attention in _MODES:
            changes["attention_type"] = _MODES[attention]
        config = _as_checkpoints(type(default)(**changes))
        torch.manual_seed(0)
        class_ = getattr(transformers, model_types(family)[model_type])
        module: torch.nn.Module = class_(config).float().eval()
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {_last_line(error)}") from error
    randomize(module)
    return module


def reduced(config: Any) -> dict[str, Any]:
    """What to change about a configuration so that its model is small."""
    plain = {name: value for name, value in config.to_dict().items() if name not in _DERIVED}
    changes: dict[str, Any] = {}
    for name, value in plain.items():
        part = getattr(config, name, None) if isinstance(value, dict) else None
        if hasattr(part, "to_dict"):
            kept = {key: item for key, item in value.items() if key not in _DERIVED}
            changes[name] = {**kept, **reduced(part)}
        else:
            new = _new_value(name, value, plain)
            if new != value:
                changes[name] = new
    changes |= _per_layer(plain, changes)
    size, patch = plain.get("image_size"), plain.get("patch_size")
    if size and isinstance(patch, int):
        changes["image_size"] = _PATCHES_PER_SIDE * patch
    elif size and patch:
        changes["image_size"] = [_PATCHES_PER_SIDE * each for each in patch]
    return changes | EXCEPTIONS.get(config.model_type, {})


def _new_value(name: str, value: Any, values: dict[str, Any]) -> Any:
    if re.search(r"_(token_)?(id|index)s?$", name):
        return _below_vocabulary(value)
    if isinstance(value, (list, tuple)) and value and name in _LISTS_OF_SIZES:
        return [_new_value(name, item, values) for item in value]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if re.fullmatch(r"(.*_)?num_(key_value|kv)_heads", name):
        heads = values.get(name.replace("key_value", "attention").replace("kv_", "attention_"))
        return HEADS if value == heads else min(value, HEADS // 2)
    for pattern, size in RULES.items():
        if re.fullmatch(pattern, name):
            return size
    for pattern, size in LIMITS.items():
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value


def _below_vocabulary(value: Any) -> Any:
    """Token ids stay apart: the last ones of the vocabulary stand for those that are too large."""
    if isinstance(value, (list, tuple)):
        return [_below_vocabulary(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value >= VOCABULARY:
        return VOCABULARY - 1 - value % 61
    return value


def _per_layer(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lists with an item a layer, cut to the first layer of each kind and some more."""
    for name, count in values.items():
        if not isinstance(count, int) or not re.fullmatch(next(iter(RULES)), name):
            continue
        lists = {
            key: list(changes.get(key, value))
            for key, value in values.items()
            if isinstance(value, (list, tuple)) and len(value) == count > 1
        }
        if lists:
            kinds = [repr(kind) for kind in zip(*lists.values(), strict=True)]
            chosen = {kinds.index(kind) for kind in kinds}
            wanted = LAYERS if len(chosen) == 1 else _LAYERS_OF_SEVERAL_KINDS
            others = [index for index in range(count) if index not in chosen]
            kept = sorted([*chosen, *others[: max(0, wanted - len(chosen))]])
            cut = {key: [value[index] for index in kept] for key, value in lists.items()}
            return {name: len(kept)} | cut
    return {}


def randomize(module: torch.nn.Module) -> None:
    """Weights with which an error anywhere shows in the logits.

    Matrices keep half the size of what goes through them, so that attention is not so sure of one
    token, also where nothing divides its scores, that any rounding turns it to another. Those of
    one width keep the proportions of the module's own initialization: T5's holds the scale of its
    attention. Tables are moderate, and vectors (norms, biases) leave their own value a little.
    Matrices not centred at zero mean something else, such as the decay of a state, and stay.
    """
    generator = torch.Generator().manual_seed(1)

    def noise(parameter: torch.Tensor, std: float) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator) * std

    tables = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    turned = {id(part.weight) for part in module.modules() if type(part).__name__ == "Conv1D"}

    def width(parameter: torch.Tensor) -> int:
        if parameter.ndim == 3:
            return parameter.shape[-1]
        return parameter.shape[0] if id(parameter) in turned else parameter[0].numel()

    with torch.no_grad():
        own = {
            parameter: float(parameter.std())
            for parameter in module.parameters()
            if parameter.ndim >= 2
            and id(parameter) not in tables
            and abs(parameter.mean()) < 0.1 * parameter.std() + 1e-6
        }
        largest: dict[int, float] = {}
        for parameter, std in own.items():
            largest[width(parameter)] = max(std, largest.get(width(parameter), 0.0))
        for parameter in module.parameters():
            if id(parameter) in tables:
                parameter.copy_(noise(parameter, _TABLE_STD))
            elif parameter.ndim < 2:
                parameter.add_(noise(parameter, 0.1))
            elif parameter in own:
                share = own[parameter] / largest[width(parameter)] if own[parameter] else 1.0
                parameter.copy_(noise(parameter, _GAIN * share * width(parameter) ** -0.5))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
