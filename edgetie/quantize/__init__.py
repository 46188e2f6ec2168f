"""Quantize a bundle or an ``.onnx`` file. torch is not needed."""
