"""Exports of CEM releases for people without a store: TIFF tree, WebDataset or Hugging Face, with Croissant and RO-Crate."""
