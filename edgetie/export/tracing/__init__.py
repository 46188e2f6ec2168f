"""Trace a torch module with torch.export and convert it to an ONNX graph."""
