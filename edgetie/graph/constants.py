"""Numbers and names that many modules share."""

from __future__ import annotations

MASKED_LOGIT = 1e4
"""A logit below minus this one stands for minus infinity: the model never says such a token."""
MIN_ELEMENTS = 1024
"""Smaller initializers are not worth a search."""
MICROSOFT = "com.microsoft"
