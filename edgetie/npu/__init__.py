"""Prepare bundles for NPUs: fixed shapes and compiled context binaries."""
