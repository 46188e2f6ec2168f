"""Temporary changes to a model so that torch can trace it."""
