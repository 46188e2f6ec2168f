"""The rows of the tables, as data: which worker measures which model, in which environment."""

from __future__ import annotations

from dataclasses import dataclass

from catalogue import EDGETIE_SCHEMES, SPEECH_SCHEMES, WEIGHTS


@dataclass(frozen=True)
class Row:
    """A worker, run in an environment, measures a model."""

    label: str
    precision: str
    environment: str
    worker: str
    model: str
    reference: str = "edgetie-fp32"
    """The row whose logits are those that accuracy is measured against."""


def _edgetie(precision: str, model: str) -> Row:
    return Row("edgetie", precision, "edgetie", "peer_edgetie.py", model)


def _edgetie_cpu(precision: str, model: str) -> Row:
    return Row("edgetie, cpu provider", precision, "edgetie", "peer_edgetie_cpu.py", model)


def _genai(precision: str, model: str, label: str = "onnxruntime-genai") -> Row:
    return Row(label, precision, "genai", "peer_genai.py", model)


def _onnx(label: str, precision: str, environment: str, model: str) -> Row:
    return Row(label, precision, environment, "peer_onnx.py", model)


def _llama_cpp(matrices: str, precision: str) -> Row:
    model = f"llama.cpp-{matrices.lower()}"
    label = f"llama.cpp {matrices}"
    return Row(label, precision, "llama.cpp", "peer_llama_cpp.py", model, "llama.cpp-f32")


ROWS = {
    "edgetie-fp32": _edgetie("fp32", "edgetie-fp32"),
    "torch-fp32": Row("torch, transformers generate", "fp32", "torch", "peer_torch.py", WEIGHTS),
    "genai-fp32": _genai("fp32", "genai-fp32"),
    "llama.cpp-f32": _llama_cpp("F32", "fp32"),
    "onnxruntime-tools-fp32": _onnx(
        "onnxruntime-tools optimizer", "fp32", "onnxruntime-tools", "onnxruntime-tools-fp32"
    ),
    **{f"edgetie-{scheme}": _edgetie(scheme, f"edgetie-{scheme}") for scheme in EDGETIE_SCHEMES},
    "edgetie-int8-cpu": _edgetie_cpu("int8", "edgetie-int8"),
    "edgetie-int4-cpu": _edgetie_cpu("int4", "edgetie-int4"),
    "edgetie-int8-block16": _edgetie("int8, blocks of 16", "edgetie-int8-block16"),
    "edgetie-int8-cache8": _edgetie("int8, cache int8", "edgetie-int8-cache8"),
    "genai-int8": _genai("int8", "genai-int8"),
    "genai-int8-pruned": _genai("int8", "genai-int8-pruned", "onnxruntime-genai, prune_lm_head"),
    "genai-int4-rtn": _genai("int4, rtn_last", "genai-int4-rtn"),
    "genai-int4-k-quant": _genai("int4, k_quant_last", "genai-int4-k-quant"),
    "llama.cpp-q8_0": _llama_cpp("Q8_0", "int8"),
    "llama.cpp-q4_0": _llama_cpp("Q4_0", "int4"),
    "optimum-int8": _onnx("optimum-onnx avx512_vnni, tied", "int8", "optimum", "optimum-int8"),
    "optimum-int8-untied": _onnx(
        "optimum-onnx avx512_vnni, untied", "int8", "optimum", "optimum-int8-untied"
    ),
    **{
        f"onnxruntime-{quantizer}{suffix}": _onnx(
            f"onnxruntime {title}, {tie}", "int8", "onnxruntime", f"onnxruntime-{quantizer}{suffix}"
        )
        for quantizer, title in {"dynamic": "quantize_dynamic", "nbits": "MatMulNBits"}.items()
        for tie, suffix in {"tied": "", "untied": "-untied"}.items()
    },
    "litert-lm-int8": Row("LiteRT-LM", "int8", "litert-lm", "peer_litert_lm.py", "litert-lm-int8"),
    "ctranslate2-int8": Row(
        "CTranslate2", "int8", "ctranslate2", "peer_ctranslate2.py", "ctranslate2-int8"
    ),
    **{
        f"whisper-{scheme}": Row(
            "edgetie", scheme, "edgetie", "speech_edgetie.py", f"whisper-{scheme}"
        )
        for scheme in ("fp32", *SPEECH_SCHEMES)
    },
    "whisper-ctranslate2": Row(
        "CTranslate2", "int8", "ctranslate2", "speech_ctranslate2.py", "whisper-ctranslate2"
    ),
}

PEERS = (
    "edgetie-fp32",
    "torch-fp32",
    "genai-fp32",
    "llama.cpp-f32",
    "onnxruntime-tools-fp32",
    "edgetie-int8",
    "edgetie-int8-cpu",
    "genai-int8",
    "genai-int8-pruned",
    "llama.cpp-q8_0",
    "optimum-int8",
    "optimum-int8-untied",
    "litert-lm-int8",
)
"""The rows of `peers.py`."""

REFERENCE_PEER = "torch-fp32"
"""The peer whose tokens the others' are compared with."""

OWN_PEERS = {"fp32": "edgetie-fp32", "int8": "edgetie-int8"}
"""The row of each precision by which the other rows are divided."""

SCHEMES = (
    "edgetie-fp32",
    *(f"edgetie-{scheme}" for scheme in EDGETIE_SCHEMES),
    "edgetie-int8-cpu",
    "edgetie-int4-cpu",
    "edgetie-int8-block16",
    "edgetie-int8-cache8",
    "onnxruntime-dynamic",
    "onnxruntime-dynamic-untied",
    "onnxruntime-nbits",
    "onnxruntime-nbits-untied",
    "genai-int8",
    "genai-int4-rtn",
    "genai-int4-k-quant",
    "llama.cpp-f32",
    "llama.cpp-q8_0",
    "llama.cpp-q4_0",
    "ctranslate2-int8",
)
"""The rows of `schemes.py`."""

SPEECH = (
    "whisper-fp32",
    *(f"whisper-{scheme}" for scheme in SPEECH_SCHEMES),
    "whisper-ctranslate2",
)
"""The rows of `speech.py`; transcripts are compared with the first one's."""
