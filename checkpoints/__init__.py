"""Trained states on the disk: written, read, and exchanged with Hugging Face's format."""
