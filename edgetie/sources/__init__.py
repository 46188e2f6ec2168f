"""Load the model to export: transformers, GGUF, or a Python factory."""
