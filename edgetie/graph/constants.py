"""Numbers and names that many modules share."""

MASKED_LOGIT = 1e4
"""A logit below minus this number stands for minus infinity: the token is never generated."""
MIN_ELEMENTS = 1024
"""Initializers with fewer elements are not searched for ties or quantized."""
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
OVERRIDABLE_IR_VERSION = 4
"""The first IR version in which not every initializer is an input, so that one may override it."""
