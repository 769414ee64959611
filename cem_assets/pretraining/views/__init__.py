"""Views: augmentations and their parameters."""
