"""Views of images for pretraining: augmentations and their parameters."""
