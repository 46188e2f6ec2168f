"""Quantized values, scales and zero points of one weight matrix."""
