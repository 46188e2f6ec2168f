"""edgetie: PyTorch language models with tied embeddings, small and fast in ONNX Runtime.

The public calls, in the order of their use::

    import edgetie

    edgetie.export_model("path/to/model", "fp32")       # PyTorch to a bundle: edgetie[export]
    edgetie.quantize_model("fp32", "int8")              # 8 bits a weight, ties kept
    edgetie.inspect_model("int8").ties                  # copies in file, optimized graph, memory
    edgetie.check_model("int8", "fp32").passed          # logits, KL divergence, perplexity
    edgetie.bench_model("int8", against="fp32").ratios  # load, prefill, decode, memory
    session = edgetie.open_session("int8")              # ONNX Runtime, weights mapped

Names are imported when they are first used: ``import edgetie`` loads neither torch nor
transformers nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetie.bundle import Bundle, Manifest, open_bundle
    from edgetie.deploy import deploy as deploy_model
    from edgetie.errors import EdgetieError
    from edgetie.export.exporter import export as export_model
    from edgetie.fixed_shapes import fix_shapes
    from edgetie.harness.accuracy import check as check_model
    from edgetie.harness.compilation import compile_bundle
    from edgetie.harness.inspection import inspect as inspect_model
    from edgetie.harness.latency import bench as bench_model
    from edgetie.quantize.quantizer import quantize as quantize_model
    from edgetie.repair import tie as tie_model
    from edgetie.runtime.generation import generate, generate_text
    from edgetie.runtime.session import Session, open_session
    from edgetie.runtime.tokenizer import Tokenizer
    from edgetie.runtime.transcription import transcribe
    from edgetie.sources import Source, load_source
    from edgetie.ties import TieGroup, find_ties, verify_ties

_HOME = {
    "Bundle": "bundle:Bundle",
    "EdgetieError": "errors:EdgetieError",
    "Manifest": "bundle:Manifest",
    "Session": "runtime.session:Session",
    "Source": "sources:Source",
    "TieGroup": "ties:TieGroup",
    "Tokenizer": "runtime.tokenizer:Tokenizer",
    "bench_model": "harness.latency:bench",
    "check_model": "harness.accuracy:check",
    "compile_bundle": "harness.compilation:compile_bundle",
    "deploy_model": "deploy:deploy",
    "export_model": "export.exporter:export",
    "find_ties": "ties:find_ties",
    "fix_shapes": "fixed_shapes:fix_shapes",
    "generate": "runtime.generation:generate",
    "generate_text": "runtime.generation:generate_text",
    "inspect_model": "harness.inspection:inspect",
    "load_source": "sources:load_source",
    "open_bundle": "bundle:open_bundle",
    "open_session": "runtime.session:open_session",
    "quantize_model": "quantize.quantizer:quantize",
    "tie_model": "repair:tie",
    "transcribe": "runtime.transcription:transcribe",
    "verify_ties": "ties:verify_ties",
}

__all__ = [
    "Bundle",
    "EdgetieError",
    "Manifest",
    "Session",
    "Source",
    "TieGroup",
    "Tokenizer",
    "bench_model",
    "check_model",
    "compile_bundle",
    "deploy_model",
    "export_model",
    "find_ties",
    "fix_shapes",
    "generate",
    "generate_text",
    "inspect_model",
    "load_source",
    "open_bundle",
    "open_session",
    "quantize_model",
    "tie_model",
    "transcribe",
    "verify_ties",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name].split(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
