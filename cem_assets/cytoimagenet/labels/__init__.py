"""Weak labels over all sources: the rule and the table."""
