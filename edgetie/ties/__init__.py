"""Find, compare and verify weights that have several uses."""
