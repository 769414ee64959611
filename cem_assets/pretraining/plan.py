"""The plan of a training of `pretraining/weights`: a row of the catalogue with everything that determines the training.

A plan names one release by its digest and every hyperparameter, so it can be carried out by any process, on any machine,
now or later. `TrainingPlan.run` is a digest of everything except how long to train. It names the folder of the run's
checkpoint, from which the training continues whoever starts it. Rows are in `cem_assets.pretraining.rows`; a plan is
carried out by `cem_assets.pretraining.training.stage`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cem_assets.catalog.weights import TrainedWeights
from cem_assets.cem.releases.contamination_reports import report_partition
from cem_assets.cem.releases.stage import list_releases
from cem_assets.cytoimagenet.releases.stage import list_cyto_releases
from cem_assets.errors import DataError
from cem_assets.pretraining.methods.params import MAY_CHANGE, PARAMS, MethodParams
from cem_assets.pretraining.rows import params_of
from cem_assets.store.assets import CONTAMINATION, CYTO_RELEASES, RELEASES, WEIGHTS
from cem_assets.store.manifests import Manifest, canonical_json, current_manifest, require_manifest
from cem_assets.store.store import Store

RUNS = "_runs"
"""Folder of a partition that holds its training runs; no content, so the sweep leaves it alone."""
PLAN = "plan.json"
RELEASE_ASSETS = {"cem": RELEASES, "cytoimagenet": CYTO_RELEASES}
"""The releases that a row's `dataset` means."""


@dataclass(frozen=True)
class TrainingPlan:
    """One training.

    Attributes:
        name: Name of the weights; the partition.
        arch: Architecture of the encoder.
        dataset: "cem" or "cytoimagenet".
        version: Version of the release.
        digest: Digest of the release's manifest.
        subset: Subset of its classes; "" for all.
        params: Parameters of the method.
    """

    name: str
    arch: str
    dataset: str
    version: str
    digest: str
    subset: str
    params: MethodParams

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.params.method

    @property
    def run(self) -> str:
        """16 hex digits of everything that may not change when the training goes on."""
        about = self.to_dict()
        about["params"] = {key: value for key, value in about["params"].items() if key not in MAY_CHANGE}
        return hashlib.sha256(canonical_json(about)).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """The folder in the store where the run keeps its state."""
        return f"{WEIGHTS}/{self.name}/{RUNS}/{self.run}"

    @property
    def release(self) -> str:
        """Asset and partition of the release."""
        return f"{RELEASE_ASSETS[self.dataset]}/{self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "name": self.name,
            "method": self.method,
            "arch": self.arch,
            "dataset": self.dataset,
            "version": self.version,
            "digest": self.digest,
            "subset": self.subset,
            "params": self.params.model_dump(mode="json"),
        }

    def write(self, store: Store) -> str:
        """Write the plan beside its checkpoint; return its key."""
        key = f"{self.folder}/{PLAN}"
        store.put(key, json.dumps(self.to_dict(), indent=1, sort_keys=True).encode())
        return key


def read_plan(store: Store, key: str) -> TrainingPlan:
    """Read a plan that `TrainingPlan.write` wrote.

    Raises:
        FileNotFoundError: There is no such object.
        DataError: The object is not a plan.
    """
    try:
        found = json.loads(store.read(key))
        values = {name: found[name] for name in ("name", "arch", "dataset", "version", "digest", "subset")}
        return TrainingPlan(**values, params=PARAMS[found["method"]].model_validate(found["params"]))
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        raise DataError(f"{key} is no training plan: {error}. Materialize the weights again; that writes it anew.") from error


def make_plan(store: Store, row: TrainedWeights, release: str = "", overrides: Mapping[str, Any] | None = None) -> TrainingPlan:
    """Make the plan of a row.

    Args:
        release: Version or digest of a release; empty takes the one of the row.
        overrides: Parameters that replace those of the row.

    Returns:
        The plan. Where neither row nor overrides give pixel norms and the data are EM patches, they are those of the
        release, as the published ones were those of CEM500K and CEM1.5M.

    Raises:
        FileNotFoundError: There is no such release.
        DataError: A parameter makes no sense.
    """
    manifest = find_release(store, row.dataset, release or row.release)
    values = {**row.params, **(overrides or {})}
    if row.dataset == "cem" and not {"mean", "std"} & set(values):
        values |= {"mean": round(manifest.details["pixel_mean"], 5), "std": round(manifest.details["pixel_std"], 5)}
    params = params_of(row, **values)
    return TrainingPlan(row.name, row.arch, row.dataset, manifest.inputs.partition, manifest.digest, row.subset, params)


def contamination_of(store: Store, plan: TrainingPlan) -> str:
    """Tell what is known about test images in a plan's release.

    Args:
        plan: What is to be trained.

    Returns:
        Empty where a report on this very release found none; else a sentence that it was not compared, as a warning.

    Raises:
        DataError: The release was found to hold test images; the error says what can be done.
    """
    report = current_manifest(store, CONTAMINATION, report_partition(plan.dataset, plan.version))
    if report is None or report.details["release"] != plan.digest:
        return f"{plan.release} was not compared with the benchmarks' test images yet; materialize {CONTAMINATION} to know."
    if num := report.counts["contaminated_patches"]:
        where = ", ".join(name for name, count in report.details["contaminated_by_benchmark"].items() if count)
        raise DataError(
            f"{plan.release} holds {num:,} images that show test images of benchmarks ({where}); weights trained on it would "
            f"be scored on what they have seen. Make a release without them (exclude_contaminated), or set "
            f"allow_contaminated. The pairs: {store.url_of(report.folder)}"
        )
    return ""


def find_release(store: Store, dataset: str, wanted: str) -> Manifest:
    """Find a release.

    Args:
        dataset: A key of `RELEASE_ASSETS`.
        wanted: "newest", a version, or the digest of its manifest.

    Raises:
        FileNotFoundError: There is no such release.
    """
    asset = RELEASE_ASSETS[dataset]
    releases = list_releases(store) if dataset == "cem" else list_cyto_releases(store)
    if not releases:
        raise FileNotFoundError(f"{store.url} has no release to train on; materialize {asset} first.")
    if wanted == "newest":
        return releases[-1]
    for manifest in releases:
        if manifest.digest == wanted:
            return manifest
    if len(wanted) == 64:
        known = ", ".join(f"{release.inputs.partition} ({release.digest[:12]}...)" for release in releases[-5:])
        raise FileNotFoundError(f"no release of {asset} has the digest {wanted}; there are {known}. Name one of them.")
    return require_manifest(store, asset, wanted)
