"""edgetie's runtime with ONNX Runtime's own kernels."""

from functools import partial

from _measure import main
from peer_edgetie import open_logits, open_model

main(partial(open_model, provider="cpu"), partial(open_logits, provider="cpu"))
