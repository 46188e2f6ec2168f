"""Write the settings of a starter in C as a header."""

from collections.abc import Mapping
from typing import Any

_TYPES = {"float": ("FLOAT", 4), "int8": ("INT8", 1), "uint8": ("UINT8", 1)}


def c_header(app: Mapping[str, Any]) -> str:
    """Compose ``app.h``: the settings of ``app.json`` as constants."""
    sampling = app["sampling"]
    element, size = _TYPES[app["cache_dtype"]]
    constants = {
        "MODEL": _string(app["model"]),
        "WEIGHTS": _string(app["weights"]),
        "ORT_FORMAT": int(app["ort_format"]),
        "BEFORE_PROMPT": _string(app["before_prompt"]),
        "AFTER_PROMPT": _string(app["after_prompt"]),
        "BEFORE_ANSWER": _string(app["before_answer"]),
        "NEXT_PROMPT": _string(app["next_prompt"] or ""),
        "HISTORY": int(app["next_prompt"] is not None),
        "TRIM_PROMPT": int(app["trim_prompt"]),
        "TRIM_ANSWER": int(app["trim_answer"]),
        "STOP_STRINGS": _string("".join(f"{stop}\0" for stop in app["stop_strings"])),
        "TEMPERATURE": float(sampling["temperature"]),
        "TOP_K": sampling["top_k"] or 0,
        "TOP_P": float(sampling["top_p"] or 1),
        "REPETITION_PENALTY": float(sampling["repetition_penalty"]),
        "INPUTS": _string(" ".join(app["inputs"])),
        "VOCABULARY": app["vocabulary"],
        "MAX_POSITIONS": app["max_positions"] or 0,
        "LOGITS_OF_ALL": int(app["logits"] == "all"),
        "PACKED": int(app["packed"]),
        "KERNELS": _string(app["kernels"]),
        "IN_FILE": int(app["in_file"]),
        "OPTIMIZE": int(app["optimize"]),
        "CACHE_IN_PLACE": int(app["cache_in_place"]),
        "CACHE_HEADS": app["cache_heads"],
        "CACHE_SIZE": app["cache_size"],
        "CACHE_BYTES": size,
        "CACHE_TYPE": f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{element}",
    }
    constants |= _image_constants(app["images"])
    lines = ["/* The settings of this model, written by edgetie deploy. */"]
    lines += [f"#define APP_{name} {value}" for name, value in constants.items()]
    stops = ", ".join(map(str, app["stop_tokens"])) or "-1"
    caches = ", ".join(_string(name) for name in app["cache"])
    lines += [
        f"static const long long APP_STOP[] = {{{stops}}};",
        f"static const char *const APP_CACHE[] = {{{caches}}};",
    ]
    for name in ("inputs", "outputs", "feeds"):
        names = map(_string, (app["images"] or {}).get(name, ()))
        values = ", ".join([*names, "0"])  # a last zero: C has no empty arrays
        lines.append(f"static const char *const APP_IMAGE_{name.upper()}[] = {{{values}}};")
    for name in ("prefix", "suffix"):
        ids = ", ".join(map(str, [*app[name], 0]))
        lines += [
            f"static const long long APP_{name.upper()}[] = {{{ids}}};",
            f"#define APP_{name.upper()}_TOKENS {len(app[name])}",
        ]
    return "\n".join(lines) + "\n"


def _image_constants(images: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings about images; those of a model that reads none, or that has no token for them,
    are not used.
    """
    settings: Mapping[str, Any] = images or {}
    first = settings.get("before_prompt", ("", ""))
    following = settings.get("next_prompt") or ("", "")
    return {
        "IMAGES": int(images is not None),
        "NEEDS_IMAGE": int(settings.get("required", False)),
        "PROCESSOR": _string(settings.get("processor", "")),
        "ENCODER": _string(settings.get("encoder", "")),
        "IMAGE_TOKEN": _string(settings.get("token", "")),
        "IMAGE_TOKEN_ID": settings.get("token_id", -1),
        "IMAGE_SIZE": settings.get("size", 1),
        "POSITION_AXES": settings.get("position_axes", 1),
        "BEFORE_IMAGE": _string(first[0]),
        "AFTER_IMAGE": _string(first[1]),
        "NEXT_BEFORE_IMAGE": _string(following[0]),
        "NEXT_AFTER_IMAGE": _string(following[1]),
    }


def _string(text: str) -> str:
    """A C string literal; bytes that are not plain ASCII are in octal, which has a fixed length."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{"".join(plain)}"'
