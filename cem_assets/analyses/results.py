"""Functions that all analyses of weights share: loading the weights, naming results, committing them, and logging to MLflow.

A result is at `analyses/<analysis>/<weights>/<setting>/`, where the setting is a digest of the parameters and the images.
Results of different weights with one setting were made from the same images in the same way, and none overwrites another.
`cem_assets.analyses.comparisons.stage` compares the results of several weights.
"""

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv

from cem_assets.benchmarks.scores.inputs import ScoredWeights, find_weights, finite
from cem_assets.benchmarks.scores.stored import parameters_digest
from cem_assets.benchmarks.transfer.features.params import FALLBACK_NORMS
from cem_assets.benchmarks.transfer.stage import flattened
from cem_assets.errors import DataError
from cem_assets.execution.stage import Beginning, StageResult, begin
from cem_assets.pretraining.rows import stored_weights_rows
from cem_assets.pretraining.weights.stored import load_encoder_weights
from cem_assets.store.assets import CODE_VERSIONS, DATASET_DISTANCES, DATASET_MAPS, INVARIANCE, OCCLUSION, ORGANELLES, WEIGHTS
from cem_assets.store.commits import installed_versions
from cem_assets.store.manifests import MANIFESTS, Inputs, Manifest, committed_partitions, current_manifest
from cem_assets.store.parquet import parquet_bytes, parquet_file
from cem_assets.store.store import Store
from cem_assets.tracking.mlflow import Metric
from cem_assets.tracking.runs import open_tracked_run

if TYPE_CHECKING:
    from torch import nn

ANALYSES: dict[str, str] = {
    "invariance": INVARIANCE,
    "occlusion": OCCLUSION,
    "masks": ORGANELLES,
    "umap": DATASET_MAPS,
    "frechet": DATASET_DISTANCES,
}
"""Assets of the analyses by the short names of the command line."""
NUMBERS = "numbers.json"
"""File of the numbers that are compared between weights, by name."""
_NOT_IN_A_NAME = re.compile(r"[^\w./ -]+")


@dataclass(frozen=True)
class AnalysisPlan:
    """An analysis with everything that determines its result.

    Attributes:
        asset: A value of `ANALYSES`.
        weights: The encoder.
        parameters: All parameters that decide the result, as JSON values.
        images: Digests of the images' upstream assets.
        source: Source of the images, in words.
    """

    asset: str
    weights: ScoredWeights
    parameters: Mapping[str, Any]
    images: Mapping[str, str]
    source: str

    @property
    def setting(self) -> str:
        """12 hex digits: equal for results that can be compared."""
        together = {"code_version": CODE_VERSIONS[self.asset], "parameters": self.parameters, "images": self.images}
        return parameters_digest(together)

    @property
    def inputs(self) -> Inputs:
        """The inputs that its manifest records."""
        partition = f"{self.weights.name}/{self.setting}"
        upstream = {**self.images, **self.weights.upstream}
        return Inputs(self.asset, partition, CODE_VERSIONS[self.asset], self.parameters, upstream)


@dataclass
class Findings:
    """The findings of an analysis.

    Attributes:
        tables: By name of the file without suffix; each is written as Parquet and, unless it holds images, as CSV.
        figures: PNG by name of the file.
        numbers: The numbers that are compared between weights and sent to MLflow; NaN where there is none.
        counts: Counts for the manifest.
        details: Further facts for the manifest.
    """

    tables: dict[str, pa.Table] = field(default_factory=dict)
    figures: dict[str, bytes] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def analysed_weights(store: Store, name: str) -> ScoredWeights:
    """Look up the weights of an analysis.

    Raises:
        DataError: There are no weights of that name; the text lists those that exist.
        FileNotFoundError: The weights are a row of the catalogue, but not in the store yet.
    """
    if name not in (committed := committed_partitions(store, WEIGHTS)):
        rows = stored_weights_rows(store)
        if name not in rows:
            raise DataError(f"weights {name!r:.80} are not known; expected one of {', '.join(sorted({*rows, *committed}))}.")
        raise FileNotFoundError(
            f"weights {name!r} are not in {store.url} yet; materialize {WEIGHTS}, partition {name!r} (`cem-assets weights "
            f"train {name}`). In the store are: {', '.join(committed) or 'none'}."
        )
    return find_weights(store, name)


def build_weights(store: Store, weights: ScoredWeights, device: str) -> "tuple[nn.Module, tuple[float, float]]":
    """Load an encoder to a device; also return the mean and deviation with which its pixels are normalised."""
    from cem_assets.encoders import pick_device

    loaded, _ = load_encoder_weights(store, weights.name, weights.digest)
    return loaded.build().to(pick_device(device)), weights.norms or FALLBACK_NORMS


def commit_analysis(store: Store, plan: AnalysisPlan, run_id: str, find: Callable[[], Findings]) -> StageResult:
    """Run an analysis unless its result is up to date, commit it, and log it to MLflow.

    Args:
        find: Runs the analysis.

    Returns:
        The committed partition, named by weights and setting.
    """
    stage = begin(store, plan.inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    findings = find()
    details = {"source": plan.source, "setting": plan.setting, "arch": plan.weights.arch, "method": plan.weights.method}
    result = write_findings(stage, findings, details)
    tags = {"cem_assets.weights": plan.weights.name, "setting": plan.setting, "images": plan.source}
    track(store, result.manifest, plan.weights.name, findings, tags)
    return result


def write_findings(stage: Beginning, findings: Findings, details: Mapping[str, Any]) -> StageResult:
    """Write tables, figures and numbers, and the manifest."""
    commit = stage.commit
    for name, table in findings.tables.items():
        commit.write(f"{name}.parquet", parquet_bytes([table], table.schema))
        if "image" not in table.schema.names:
            sink = io.BytesIO()
            pyarrow.csv.write_csv(table, sink)
            commit.write(f"{name}.csv", sink.getvalue())
    for name, data in findings.figures.items():
        commit.write(name, data)
    numbers = {name: finite(float(f"{value:.6g}")) for name, value in findings.numbers.items()}
    commit.write(NUMBERS, json.dumps(numbers, indent=1, ensure_ascii=False).encode())
    counts = {**findings.counts, "numbers": len(numbers), "figures": len(findings.figures)}
    return stage.finish(counts, {**details, **findings.details, "numbers": numbers}, installed_versions("torch", "umap-learn"))


def track(store: Store, manifest: Manifest, run_name: str, findings: Findings, tags: Mapping[str, str]) -> None:
    """Log a result to MLflow through the outbox: one run for each result, one experiment for each analysis."""
    about = {
        **tags,
        "partition": manifest.inputs.partition,
        "digest": manifest.digest,
        "content": store.url_of(manifest.folder),
    }
    parameters = flattened(manifest.inputs.parameters)
    with open_tracked_run(store, manifest.digest, manifest.inputs.asset, run_name, parameters, about) as run:
        points = [(_NOT_IN_A_NAME.sub("_", name), value) for name, value in sorted(findings.numbers.items())]
        run.log_metrics([Metric(name, value, 0) for name, value in points if math.isfinite(value)])
        for name, data in findings.figures.items():
            run.log_artifact(name, data)
        run.finish("FINISHED")


def settings_of(store: Store, asset: str, weights: str) -> list[str]:
    """List the settings in which weights were analysed."""
    base = f"{asset}/{weights}"
    return [name for name in store.folders(base) if store.children(f"{base}/{name}/{MANIFESTS}")]


def results_of(store: Store, asset: str, weights: str) -> list[Manifest]:
    """Read the manifests of an analysis of weights, the newest last."""
    found = [current_manifest(store, asset, f"{weights}/{setting}") for setting in settings_of(store, asset, weights)]
    return sorted((one for one in found if one is not None), key=lambda one: (str(one.run["finished"]), one.key))


def read_table(store: Store, manifest: Manifest, name: str) -> pa.Table:
    """Read a table of a result.

    Args:
        manifest: Manifest of the result.
        name: Name of the file without suffix.
    """
    with store.open(f"{manifest.folder}/{name}.parquet") as handle:
        return parquet_file(handle).read()
