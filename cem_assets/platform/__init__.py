"""Dagster's helpers: steps, partitions, resources, attempts, the run launcher."""
