"""Audio features, audio embeddings and transcription."""
