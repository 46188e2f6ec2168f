"""One module for each method by which other libraries quantize safetensors files."""
