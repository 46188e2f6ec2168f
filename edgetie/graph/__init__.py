"""Read, match and edit ONNX graphs, and read and write their external data."""
