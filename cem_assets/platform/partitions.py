"""Partitions: one key for each dataset, source, label, row of weights or benchmark, added as they appear."""

from collections.abc import Iterable

import dagster as dg

em_datasets = dg.DynamicPartitionsDefinition(name="em_datasets")
"""Names of EM datasets, which are the names of their folders in the inbox."""

microscopy_sources = dg.DynamicPartitionsDefinition(name="microscopy_sources")
"""Names of microscopy sources, which are the names of their folders in the inbox."""

cyto_labels = dg.DynamicPartitionsDefinition(name="cyto_labels")
"""Labels of the current label table. A key is a slug with 8 hexadecimal digits; the metadata have the label itself."""

weights_rows = dg.DynamicPartitionsDefinition(name="weights")
"""Rows of the catalogue of weights: those of this package, and those of `settings/weights.toml` in the store."""

benchmark_rows = dg.DynamicPartitionsDefinition(name="benchmarks")
"""Rows of the catalogue of benchmarks: those of this package, and those of `settings/benchmarks.toml` in the store."""

scored_pairs = dg.MultiPartitionsDefinition({"benchmark": benchmark_rows, "weights": weights_rows})
"""Pairs of a benchmark and weights. Fused features of two weights have a key of their own, such as "a+b"."""


def missing_partitions(
    instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, names: Iterable[str]
) -> list[dg.AddDynamicPartitionsRequest]:
    """Request the partitions that Dagster does not have yet."""
    known = set(instance.get_dynamic_partitions(str(partitions.name)))
    added = [name for name in names if name not in known]
    return [partitions.build_add_request(added)] if added else []
