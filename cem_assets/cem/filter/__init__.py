"""Scoring exemplars with the patch classifier, and keeping the informative ones."""
