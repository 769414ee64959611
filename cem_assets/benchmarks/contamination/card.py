"""The card of a contamination report: what was compared, what was found, and what to do about it."""

from dataclasses import dataclass

from cem_assets.benchmarks.contamination.comparison import MAX_DISTANCE, MIN_CORRELATION, MIN_DETAIL
from cem_assets.cem.releases.contamination_reports import PAIRS
from cem_assets.store.assets import CONTAMINATION, RELEASES

CARD = "README.md"
NUM_PICTURED = 20
"""Pairs of each benchmark that are drawn."""


@dataclass(frozen=True)
class ReportFacts:
    """Numbers of a report.

    Attributes:
        dataset: "cem" or "cytoimagenet".
        version: Of the release.
        num_patches: Patches of the release that were compared.
        num_images: Test images, by benchmark.
        num_by_benchmark: Patches that show a test image, by benchmark.
        num_pairs: Pairs of patch and test image, by benchmark.
        num_by_dataset: Patches that show a test image, by dataset of the release (cem) or label (cytoimagenet).
    """

    dataset: str
    version: str
    num_patches: int
    num_images: dict[str, int]
    num_by_benchmark: dict[str, int]
    num_pairs: dict[str, int]
    num_by_dataset: dict[str, int]


def contamination_card(facts: ReportFacts) -> str:
    """Write the card of a report as Markdown."""
    num = sum(facts.num_by_dataset.values())
    compared = f"{facts.num_patches:,} patches were compared with {sum(facts.num_images.values()):,} test images of "
    lines = [f"# Test images in {facts.dataset} {facts.version}", ""]
    lines += [f"{compared}{len(facts.num_images)} prepared benchmark(s).", ""]
    if num:
        lines += [f"**{num:,} patch(es) show what test images show.** Scores of networks trained on them say too much.", ""]
        lines += [remedy_for(facts.dataset, facts.version), ""]
    else:
        lines += ["No patch shows what a test image shows.", ""]
    lines += ["| benchmark | test images | pairs | patches |", "|---|---:|---:|---:|"]
    for name, images in facts.num_images.items():
        lines.append(f"| {name} | {images:,} | {facts.num_pairs[name]:,} | {facts.num_by_benchmark[name]:,} |")
    if num:
        what = "label" if facts.dataset == "cytoimagenet" else "dataset"
        lines += ["", f"| {what} | patches |", "|---|---:|"]
        lines += [f"| {_cell(name)} | {count:,} |" for name, count in facts.num_by_dataset.items()]
        lines += ["", f"All pairs are in `{PAIRS}`; `pairs-<benchmark>.png` shows the first {NUM_PICTURED} of each benchmark."]
    lines += [
        "",
        f"Found are exact and near copies (dHash within {MAX_DISTANCE} of 64 bits, correlation of at least {MIN_CORRELATION}, "
        f"that of fine structure {MIN_DETAIL}), also flipped, turned by quarters, encoded anew, or sharing half a patch with a "
        "test image. Not looked for: copies that are rescaled and cropped, turned by other angles, inverted, or shifted by "
        "something else than half patches.",
        "",
    ]
    return "\n".join(lines)


def remedy_for(dataset: str, version: str) -> str:
    """Say what to do about a release that holds test images."""
    if dataset == "cem":
        return (
            f"Materialize {RELEASES} with exclude_contaminated = true, then {CONTAMINATION} of the release it makes; train on "
            f"that one, not on {version}."
        )
    return (
        'Find the sources of these images, give those that are test sets role = "test", and materialize labels, crops and '
        f"the release again; do not train on {version}."
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
