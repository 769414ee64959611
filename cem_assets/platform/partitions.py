"""Partitions: one key per dataset, source or label, added as they appear."""

from collections.abc import Iterable

import dagster as dg

em_datasets = dg.DynamicPartitionsDefinition(name="em_datasets")
"""Names of EM datasets, as their folders in the inbox are called."""

microscopy_sources = dg.DynamicPartitionsDefinition(name="microscopy_sources")
"""Names of microscopy sources, as their folders in the inbox are called."""

cyto_labels = dg.DynamicPartitionsDefinition(name="cyto_labels")
"""Labels of the current label table: a slug and 8 hex digits; the label itself is in the metadata."""

weights_rows = dg.DynamicPartitionsDefinition(name="weights")
"""Rows of the catalogue of weights: those shipped, and those of `settings/weights.toml` in the store."""

benchmark_rows = dg.DynamicPartitionsDefinition(name="benchmarks")
"""Rows of the catalogue of benchmarks: those shipped, and those of `settings/benchmarks.toml` in the store."""

scored_pairs = dg.MultiPartitionsDefinition({"benchmark": benchmark_rows, "weights": weights_rows})
"""Weights on benchmarks. Fused features of two weights are a key of their own, such as "a+b"."""


def missing_partitions(
    instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, names: Iterable[str]
) -> list[dg.AddDynamicPartitionsRequest]:
    """Request the partitions that Dagster does not have yet."""
    known = set(instance.get_dynamic_partitions(str(partitions.name)))
    added = [name for name in names if name not in known]
    return [partitions.build_add_request(added)] if added else []
