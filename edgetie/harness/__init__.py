"""Measure a bundle: accuracy against a reference, latency and memory, copies of tied weights."""
