"""Ingests a folder: copies it to the inbox, runs its chain, and reports the result."""

from dataclasses import dataclass
from pathlib import Path

from cem_assets.cli.runs import Listener, chain_until, failures, open_instance, run_job
from cem_assets.cytoimagenet.sources.inbox import register_source
from cem_assets.inbox.datasets import register_folder
from cem_assets.inbox.quarantine import report_key
from cem_assets.store.assets import FILTERED, RELEASES, SOURCE_METADATA, STAGES
from cem_assets.store.manifests import current_manifest
from cem_assets.store.store import Store


@dataclass(frozen=True)
class IngestResult:
    """The result of ingesting a dataset.

    Attributes:
        dataset: Name of the dataset or source.
        problems: Descriptions of failures; empty where there are none.
    """

    dataset: str
    problems: tuple[str, ...]


def ingest_folder(
    store: Store,
    folder: Path,
    name: str | None = None,
    until: str = "releases",
    is_replaced: bool = False,
    listener: Listener | None = None,
) -> IngestResult:
    """Register a folder and run the chain on it.

    Args:
        folder: A folder of files with a `dataset.toml`.
        name: Name of the dataset instead of the one in `dataset.toml`.
        until: Last stage; "releases" makes a release as well.
        is_replaced: Whether another dataset of that name becomes an older version.

    Raises:
        DataError: The stage is not known, or the folder's description breaks rules.
        FileNotFoundError: There is no such folder, or no `dataset.toml` in it.
        FileExistsError: The name is taken by other files.
    """
    assets = chain_until(until)
    dataset = register_folder(store, folder, name, is_replaced)
    with open_instance() as instance:
        result = run_job(instance, store.url, "cem_chain", assets, dataset, listener=listener)
        if not result.success:
            return IngestResult(dataset, tuple(failures(result)))
        if until in ("releases", RELEASES):
            release = run_job(instance, store.url, "cem_release", listener=listener)
            if not release.success:
                return IngestResult(dataset, tuple(failures(release)))
    return IngestResult(dataset, ())


def summary_lines(store: Store, dataset: str) -> list[str]:
    """Make a short table of what is committed for a dataset, with counts and addresses."""
    rows = [("stage", "result", "where")]
    for stage, asset in STAGES.items():
        manifest = current_manifest(store, asset, dataset)
        if manifest is None:
            continue
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in manifest.counts.items() if count)
        rows.append((stage, counts, store.url_of(manifest.folder)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"\n{dataset}"] + [f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows]
    if store.size(report_key(dataset)) is not None:
        lines.append(f"  refused files and why: {store.url_of(report_key(dataset))}")
    if current_manifest(store, FILTERED, dataset) is not None:
        lines.append(f'  read them: cem_assets.readers.read_patches("{dataset}", "filtered")')
    return lines


def ingest_source(
    store: Store, folder: Path, name: str | None = None, is_replaced: bool = False, listener: Listener | None = None
) -> IngestResult:
    """Register a microscopy source and make its metadata. Sensors make labels, crops and releases, which span all sources.

    Args:
        folder: Tables and images with a `source.toml`.
        name: Name of the source instead of the one in `source.toml`.
        is_replaced: Whether another source of that name becomes an older version.

    Raises:
        DataError: The folder's description breaks rules.
        FileNotFoundError: There is no such folder, or no `source.toml` in it.
        FileExistsError: The name is taken by other files.
    """
    source = register_source(store, folder, name, is_replaced)
    with open_instance() as instance:
        result = run_job(instance, store.url, "cyto_sources", partition=source, listener=listener)
    return IngestResult(source, () if result.success else tuple(failures(result)))


def source_lines(store: Store, source: str) -> list[str]:
    """Describe the metadata of a source in a few lines."""
    manifest = current_manifest(store, SOURCE_METADATA, source)
    if manifest is None:
        return [f"{source}: nothing is committed; see {store.url_of(report_key(source))}"]
    report, counts = manifest.details["report"], manifest.counts
    lines = [f"\n{source}: {counts['rows']:,} rows, {counts['rows_with_images']:,} with images, {counts['dropped']:,} left out"]
    lines += [f"  left out: {reason} ({count:,})" for reason, count in report["dropped"].items()]
    lines += [f"  {column}: {count:,} different values" for column, count in report["num_values"].items() if count]
    lines.append(f"  {store.url_of(manifest.folder)}")
    return lines
