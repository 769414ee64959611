"""Test images found in releases: fingerprints, their comparison, reports."""
