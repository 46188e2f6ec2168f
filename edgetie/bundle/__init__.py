"""The bundle directory: its files, its manifest, and how it is written."""
