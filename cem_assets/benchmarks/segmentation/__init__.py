"""Segmentation benchmarks: a U-Net on frozen or fine-tuned encoders, its metrics and its scores."""
