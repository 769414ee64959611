"""Pretraining methods, their parts and their training loop."""
