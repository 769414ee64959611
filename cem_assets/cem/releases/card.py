"""The dataset card of a release: counts per stage, pixel norms, licences and citations, as Markdown.

The functions here are pure. `cem_assets.cem.releases.stage` gathers the facts and commits the card.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.pixel_sums import PixelSums

STAGES = ("raw_patches", "deduplicated_patches", "filtered_patches")


@dataclass(frozen=True)
class ReleasedDataset:
    """One dataset of a release.

    Attributes:
        digest: Digest of its manifest of `cem/filtered_patches`.
        counts: Numbers of patches by stage, with the names in `STAGES`.
        num_bytes: Size of its shards.
        pixels: Sums over the pixels of its filtered patches.
    """

    description: DatasetDescription
    digest: str
    counts: dict[str, int]
    num_bytes: int
    pixels: PixelSums


@dataclass(frozen=True)
class CrossDatasetDuplicates:
    """Near copies across datasets.

    Attributes:
        num_pairs: Number of pairs of patches within `max_distance`.
        num_datasets: Number of datasets that have patches in such pairs.
        max_distance: Hamming distance, out of 64 bits.
    """

    num_pairs: int
    num_datasets: int
    max_distance: int


def licences(datasets: Sequence[ReleasedDataset]) -> dict[str, list[str]]:
    """Return the names of the datasets by their licence, in order of licence."""
    groups: dict[str, list[str]] = {}
    for item in sorted(datasets, key=lambda d: (d.description.licence, d.description.name)):
        groups.setdefault(item.description.licence, []).append(item.description.name)
    return groups


def _cell(text: str) -> str:
    """Make a curator's text safe inside a Markdown table: one line, without pipes or HTML."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;") or "-"


def _joined(datasets: Sequence[ReleasedDataset], field: str) -> str:
    values = sorted({str(getattr(item.description, field)).strip() for item in datasets} - {""})
    return ", ".join(_cell(value) for value in values) or "not stated"


def dataset_card(
    version: str,
    datasets: Sequence[ReleasedDataset],
    duplicates: CrossDatasetDuplicates,
    threshold_note: str,
    excluded_note: str = "",
) -> str:
    """Write the dataset card of a release.

    Args:
        datasets: The datasets of the release, in order of name.
        threshold_note: One sentence on how patches were judged.
        excluded_note: One sentence on the patches that were left out; empty if none were.

    Returns:
        Markdown with a YAML header, which dataset hubs read.
    """
    total = {stage: sum(item.counts.get(stage, 0) for item in datasets) for stage in STAGES}
    pooled = sum((item.pixels for item in datasets), PixelSums(0, 0, 0))
    mean, std = pooled.norms()
    lines = [
        "---",
        "license: other",
        "license_name: see-the-table-of-licences",
        f"pretty_name: CEM patches {version}",
        "task_categories: [image-feature-extraction]",
        "tags: [electron-microscopy, self-supervised-learning]",
        "---",
        "",
        f"# CEM patches, release {version}",
        "",
        f"{total['filtered_patches']:,} informative, deduplicated 2D patches of up to 224 x 224 px (8-bit gray) from "
        f"{len(datasets)} electron-microscopy dataset(s), curated as CEM500K and CEM1.5M are.",
        "",
        f"- Pixel mean {mean:.5f}, standard deviation {std:.5f} (of values scaled to 0..1; {pooled.count:,} pixels)",
        f"- Organisms: {_joined(datasets, 'organism')}",
        f"- Tissues: {_joined(datasets, 'tissue')}",
        f"- Techniques: {_joined(datasets, 'technique')}",
        f"- {threshold_note}",
        *([f"- {excluded_note}"] if excluded_note else []),
        f"- Near copies across datasets (at most {duplicates.max_distance} of 64 bits apart): {duplicates.num_pairs:,} pair(s) "
        f"in {duplicates.num_datasets} dataset(s), listed in `cross_dataset_duplicates.parquet`",
        "",
        "## Patches per stage",
        "",
        "| dataset | raw | deduplicated | informative | organism | tissue | technique |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    for item in datasets:
        about = item.description
        numbers = " | ".join(f"{item.counts.get(stage, 0):,}" for stage in STAGES)
        lines.append(
            f"| {_cell(about.name)} | {numbers} | {_cell(about.organism)} | {_cell(about.tissue)} | {_cell(about.technique)} |"
        )
    lines.append(f"| **all** | {' | '.join(f'**{total[stage]:,}**' for stage in STAGES)} | | | |")
    lines += ["", "## Licences", "", "| licence | datasets |", "|---|---|"]
    lines += [f"| {_cell(name)} | {', '.join(members)} |" for name, members in licences(datasets).items()]
    lines += ["", "Each patch carries its dataset's name, and so its licence.", "", "## Citations", ""]
    for item in datasets:
        about = item.description
        source = f" Source: {_cell(about.source_url)}" if about.source_url else ""
        lines.append(f"- **{_cell(about.name)}**: {_cell(about.citation)}{source}")
    lines += [
        "- **Method**: Conrad, R. and Narayan, K. CEM500K, a large-scale heterogeneous unlabeled cellular electron "
        "microscopy image dataset for deep learning. eLife 10:e65894 (2021). doi:10.7554/eLife.65894",
        "",
    ]
    return "\n".join(lines)
