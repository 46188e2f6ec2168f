"""Image processors: their settings, types and algorithms, with numpy and Pillow."""
