"""Run a model on text or audio and record its activations."""
