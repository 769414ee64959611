"""The dataset card of a release.

`cem_assets.cytoimagenet.releases.stage` reads and commits releases.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MARKUP = re.compile(r"[\\|\[\]`]")


@dataclass(frozen=True)
class ReleasedLabel:
    """One label of a release.

    Attributes:
        key: Partition key of its crops.
        category: The label column that the label was taken from.
        num_images: Number of all images, of which `num_validation` are for validation.
        sources: Number of images by source.
    """

    key: str
    label: str
    category: str
    num_images: int
    num_validation: int
    sources: Mapping[str, int]


def _cell(text: object) -> str:
    """Make a source's text safe in Markdown: it becomes one line, without pipes, links, code or HTML."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\g<0>", flat) or "-"


def dataset_card(
    version: str,
    labels: Sequence[ReleasedLabel],
    sources: Mapping[str, Mapping[str, Any]],
    excluded: Mapping[str, int],
    missing: int,
) -> str:
    """Write the dataset card of a release.

    Args:
        labels: The labels in the release.
        sources: Facts by source: title, database, licence, citation, source_url.
        excluded: Number of crops that were left out when the release was made, by reason.
        missing: Number of labels of the label table that had no crops at that time.

    Returns:
        Markdown with a YAML header that dataset hubs read.
    """
    num_images = sum(item.num_images for item in labels)
    num_validation = sum(item.num_validation for item in labels)
    by_source: dict[str, int] = {}
    for item in labels:
        for source, count in item.sources.items():
            by_source[source] = by_source.get(source, 0) + count
    by_database: dict[str, int] = {}
    licences: dict[str, list[str]] = {}
    for source, count in sorted(by_source.items()):
        facts = sources[source]
        by_database[facts["database"]] = by_database.get(facts["database"], 0) + count
        licences.setdefault(facts["licence"], []).append(source)
    categories: dict[str, list[ReleasedLabel]] = {}
    for item in labels:
        categories.setdefault(item.category, []).append(item)
    lines = [
        "---",
        "license: other",
        "license_name: see-the-table-of-licences",
        f"pretty_name: CytoImageNet {version}",
        "task_categories: [image-classification]",
        "tags: [microscopy, weak-labels, pretraining]",
        "---",
        "",
        f"# CytoImageNet, release {version}",
        "",
        f"{num_images:,} gray images of {len(labels):,} weak labels from {len(by_source)} source(s), {num_validation:,} of "
        "them for validation. A label is a value of the images' own metadata: labels overlap, but an image has one.",
        "",
        "## Labels per category",
        "",
        "| category | labels | images |",
        "|---|---:|---:|",
    ]
    for category, members in sorted(categories.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        lines.append(f"| {category} | {len(members):,} | {sum(item.num_images for item in members):,} |")
    lines += ["", "## Images per database", "", "| database | images |", "|---|---:|"]
    lines += [f"| {_cell(name)} | {count:,} |" for name, count in sorted(by_database.items(), key=lambda p: (-p[1], p[0]))]
    lines += ["", "## Licences", "", "| licence | sources | images |", "|---|---|---:|"]
    for licence, members_of in sorted(licences.items()):
        lines.append(f"| {_cell(licence)} | {', '.join(members_of)} | {sum(by_source[name] for name in members_of):,} |")
    lines += ["", "Every image carries its source and licence.", ""]
    if excluded or missing:
        lines += ["## Left out", ""]
        lines += [f"- {count:,} crop(s): {reason}" for reason, count in sorted(excluded.items())]
        lines += [f"- {missing:,} label(s) of the label table had no crops yet"] if missing else []
        lines.append("")
    lines += ["## Citations", ""]
    for source in sorted(by_source):
        facts = sources[source]
        address = f" Source: {_cell(facts['source_url'])}" if facts["source_url"] else ""
        lines.append(
            f"- **{_cell(facts['title'] or source)}** ({by_source[source]:,} images): {_cell(facts['citation'])}{address}"
        )
    lines += [
        "- **Method**: Hua, S. B. Z., Lu, A. X. and Moses, A. M. CytoImageNet: A large-scale pretraining dataset for bioimage "
        "transfer learning. arXiv:2111.11646 (2021)",
        "",
    ]
    return "\n".join(lines)
