"""Features of images under an encoder: how they are computed, and keeping them in the store."""
