"""Scoring exemplars with the patch classifier, and keeping those that are informative."""
