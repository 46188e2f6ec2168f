"""Run a bundle without torch: sessions, decoding, tokenizers, audio and memory."""
