"""Microscopy sources: recipes, tables in common words, images grouped by field of view."""
