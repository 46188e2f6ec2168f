"""edgetie: PyTorch language models with tied embeddings, small and fast in ONNX Runtime.

The public calls, in the order of their use::

    import edgetie

    edgetie.export_model("path/to/model", "fp32")       # PyTorch to a bundle; needs torch
    edgetie.quantize_model("fp32", "int8")              # 8 bits per weight, ties kept
    edgetie.inspect_model("int8").ties                  # copies in file, optimized graph, memory
    edgetie.check_model("int8", "fp32").passed          # logits, KL divergence, perplexity
    edgetie.bench_model("int8", against="fp32").ratios  # load, prefill, decode, memory
    session = edgetie.open_session("int8")              # ONNX Runtime, weights mapped

Names are imported when they are first used: ``import edgetie`` loads neither torch nor
transformers nor onnxruntime. ``__init__.pyi`` lists them.
"""

import lazy_loader

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return __all__
