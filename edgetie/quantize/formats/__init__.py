"""Weight formats: how a quantized weight is stored, gathered and multiplied."""
