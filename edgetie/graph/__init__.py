"""Read, match and edit ONNX graphs; read and write their external data."""
