"""Prune a vocabulary: drop rows of embedding tables and heads that a use never needs."""
