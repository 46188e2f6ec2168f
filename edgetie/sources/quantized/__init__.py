"""Quantized weights of checkpoints: integers, scales and zero points as they are stored."""
