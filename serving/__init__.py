"""Serving a trained model: a batch that requests join and leave, and what speaks HTTP with them."""
