"""Write a starter application with a model, its tokenizer and its settings."""
