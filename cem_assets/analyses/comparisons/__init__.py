"""Analyses of several weights, set side by side."""
