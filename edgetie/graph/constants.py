"""Numbers and names that many modules share."""

MASKED_LOGIT = 1e4
"""A logit below minus this number stands for minus infinity: the token is never generated."""
MIN_ELEMENTS = 1024
"""Initializers with fewer elements are not searched for ties or quantized."""
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
