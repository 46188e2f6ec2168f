"""Attention as one operator, attention masks, and transformers' key-value caches."""
