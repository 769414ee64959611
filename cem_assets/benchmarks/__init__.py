"""Benchmarks: from weights to a score. Pure: arrays and tables in, numbers and pictures out."""
