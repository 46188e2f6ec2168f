"""Decode token by token: caches, sampling and text generation."""
