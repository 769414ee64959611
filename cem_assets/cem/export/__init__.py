"""Releases of CEM as files for others: TIFF tree, WebDataset, Hugging Face, with Croissant and RO-Crate."""
