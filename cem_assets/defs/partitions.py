"""Partitions: one key per dataset, added as datasets arrive."""

import dagster as dg

em_datasets = dg.DynamicPartitionsDefinition(name="em_datasets")
"""Names of EM datasets, as their folders in the inbox are called."""
