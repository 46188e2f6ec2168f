"""What image encoders read, and how they are traced."""
