"""Print reports as text, one module per command."""
