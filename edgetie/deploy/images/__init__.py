"""Image processors as graphs, for starters, and the texts around images in prompts."""
