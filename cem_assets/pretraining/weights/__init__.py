"""Encoder weights as files: export, import, model card, figures, where they lie in the store."""
