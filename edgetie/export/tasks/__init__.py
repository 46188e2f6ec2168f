"""One module per task: its graphs, inputs, outputs, caches, and the comparison with torch."""
