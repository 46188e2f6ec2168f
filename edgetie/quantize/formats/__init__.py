"""Weight formats: how a quantized matrix is stored, looked up and multiplied."""
