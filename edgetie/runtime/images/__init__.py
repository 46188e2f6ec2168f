"""Read images without torch, and find their places in a prompt."""
