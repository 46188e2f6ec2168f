"""Attention as one operator, attention masks, and the caches of transformers models."""
