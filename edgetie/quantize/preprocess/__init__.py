"""Change the float model before it is quantized: smoothing and rotation."""
