"""Encoder weights as files: export, import, model card and the weights in the store."""
