"""Microscopy sources: recipes, tables in standard terms, and images grouped by field of view."""
