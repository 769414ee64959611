"""Partitions: one key per dataset, source or label, added as they appear."""

import dagster as dg

em_datasets = dg.DynamicPartitionsDefinition(name="em_datasets")
"""Names of EM datasets, as their folders in the inbox are called."""

microscopy_sources = dg.DynamicPartitionsDefinition(name="microscopy_sources")
"""Names of microscopy sources, as their folders in the inbox are called."""

cyto_labels = dg.DynamicPartitionsDefinition(name="cyto_labels")
"""Labels of the current label table: a slug and 8 hex digits; the label itself is in the metadata."""
