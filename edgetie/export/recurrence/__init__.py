"""Recurrent layers: traced one token at a time, then converted to ONNX Scan."""
