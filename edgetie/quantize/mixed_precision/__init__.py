"""Choose a higher precision for the weights that cost the most accuracy."""
