"""What a release says: pooled pixel norms, counts per stage, licences, citations, the dataset card.

Pure: facts of the filtered datasets come in, numbers and Markdown go out. Where releases lie and how they
are committed is `cem_assets.defs.releases`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cem_assets.catalog.description import DatasetDescription

STAGES = ("raw_patches", "deduplicated_patches", "filtered_patches")


@dataclass(frozen=True)
class PixelSums:
    """Exact sums over pixels, so that pooling in any order gives the same norms.

    Attributes:
        count: Number of pixels.
        total: Sum of their values 0..255.
        squares: Sum of the squared values.
    """

    count: int
    total: int
    squares: int

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def __sub__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(self.count - other.count, self.total - other.total, self.squares - other.squares)

    def norms(self) -> tuple[float, float]:
        """Return (mean, standard deviation) of pixels scaled to 0..1; (0, 0) where there are none."""
        if not self.count:
            return (0.0, 0.0)
        mean = self.total / self.count
        # Integers up to the last step: the difference of two large numbers must not lose digits.
        variance = (self.squares * self.count - self.total * self.total) / (self.count * self.count)
        return (mean / 255.0, math.sqrt(max(variance, 0.0)) / 255.0)


@dataclass(frozen=True)
class ReleasedDataset:
    """One dataset of a release.

    Attributes:
        description: What its curator says.
        digest: Digest of its manifest of `cem/filtered_patches`.
        counts: Patches per stage, by the names in `STAGES`.
        num_bytes: Bytes of its shards.
        pixels: Sums over the pixels of its filtered patches.
    """

    description: DatasetDescription
    digest: str
    counts: dict[str, int]
    num_bytes: int
    pixels: PixelSums


@dataclass(frozen=True)
class CrossDatasetDuplicates:
    """Near copies between datasets.

    Attributes:
        num_pairs: Pairs within `max_distance`.
        num_datasets: Datasets that occur in them.
        max_distance: Hamming distance, of 64 bits.
    """

    num_pairs: int
    num_datasets: int
    max_distance: int


def licences(datasets: Sequence[ReleasedDataset]) -> dict[str, list[str]]:
    """Group the names of datasets by licence, in order of licence."""
    groups: dict[str, list[str]] = {}
    for item in sorted(datasets, key=lambda d: (d.description.licence, d.description.name)):
        groups.setdefault(item.description.licence, []).append(item.description.name)
    return groups


def _cell(text: str) -> str:
    """Make curators' text safe inside a Markdown table: one line, no pipes, no HTML."""
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
        datasets: What is in it, in order of name.
        duplicates: Near copies across datasets.
        threshold_note: How patches were judged, in one sentence.
        excluded_note: Which patches were left out, in one sentence; empty where none were.

    Returns:
        Markdown with a YAML head as dataset hubs read it.
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
