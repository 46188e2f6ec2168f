"""Weights of linear operators, and their quantization by rounding to nearest or GPTQ."""
