"""Accuracy of a bundle compared with a reference model."""
