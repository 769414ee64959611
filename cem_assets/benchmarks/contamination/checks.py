"""What must be true of releases: no patch shows what a test image of a prepared benchmark shows."""

from typing import Any

from cem_assets.benchmarks.contamination.card import remedy_for
from cem_assets.benchmarks.contamination.stage import find_compared_release, prepared_benchmarks, report_inputs
from cem_assets.cem.releases.contamination_reports import report_partition
from cem_assets.execution.checks import Outcome
from cem_assets.store.assets import CONTAMINATION
from cem_assets.store.manifests import committed_partitions, current_manifest
from cem_assets.store.store import Store


def releases_are_uncontaminated(store: Store, _: str = "") -> Outcome:
    """The newest releases hold no image that a test image of a prepared benchmark shows."""
    # A data set whose releases were never compared does not fail this check.
    compared = {partition.partition("-")[0] for partition in committed_partitions(store, CONTAMINATION)}
    found = [is_uncontaminated(store, dataset) for dataset in sorted(compared)]
    bad = [outcome for outcome in found if not outcome.passed]
    return Outcome(not bad, "; ".join(outcome.description for outcome in bad or found), {"releases": len(found)})


def is_uncontaminated(store: Store, dataset: str, version: str = "") -> Outcome:
    """Tell whether a release was compared with the current test images of all prepared benchmarks, and holds none of them.

    Args:
        dataset: "cem" or "cytoimagenet".
        version: Of the release; empty takes the newest.
    """
    release = find_compared_release(store, dataset, version)
    benchmarks = prepared_benchmarks(store)
    name = f"{dataset} {release.inputs.partition}"
    facts: dict[str, Any] = {"release": release.inputs.partition, "benchmarks": len(benchmarks)}
    if not benchmarks:
        return Outcome(True, f"no benchmark is prepared, so there are no test images that {name} could hold", facts)
    partition = report_partition(dataset, release.inputs.partition)
    report = current_manifest(store, CONTAMINATION, partition)
    names = [manifest.inputs.partition for manifest in benchmarks]
    if report is None or report.inputs.content != report_inputs(store, dataset, release, benchmarks).content:
        state = "was not compared" if report is None else "was compared with other test images than there are now, not"
        remedy = f"Materialize {CONTAMINATION}, partition {partition!r}."
        return Outcome(False, f"{name} {state} with those of {', '.join(names)}. {remedy}", facts)
    num_patches, num_images = report.counts["patches"], report.counts["test_images"]
    facts |= {"patches": num_patches, "test_images": num_images, "pairs": report.details["num_pairs"]}
    if not report.details["num_pairs"]:
        return Outcome(
            True, f"none of {num_patches:,} patches of {name} shows what one of {num_images:,} test images shows", facts
        )
    by_benchmark = report.details["contaminated_by_benchmark"].items()
    hits = ", ".join(f"{benchmark} ({count:,})" for benchmark, count in by_benchmark if count)
    num = report.counts["contaminated_patches"]
    remedy = remedy_for(dataset, release.inputs.partition)
    return Outcome(False, f"{num:,} of {num_patches:,} patches of {name} show test images of {hits}. {remedy}", facts)
