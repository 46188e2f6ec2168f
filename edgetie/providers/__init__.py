"""Execution providers: registry, availability, and the environments they run in."""
