"""Runs `cem-assets analyse ...`: it analyses several weights, then draws one figure of all. The UI launches the same jobs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cem_assets.analyses.comparisons.stage import FIGURE
from cem_assets.analyses.results import ANALYSES, analysed_weights, results_of
from cem_assets.cli.runs import Listener, failures, open_instance, run_job
from cem_assets.errors import DataError, StoreError
from cem_assets.store.assets import COMPARISONS
from cem_assets.store.manifests import Manifest, current_manifest, require_manifest
from cem_assets.store.store import Store


def analyse_all(
    store: Store, analysis: str, weights: Sequence[str], config: Mapping[str, Any], listener: Listener | None = None
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Analyse several weights in the same way, then compare them in one figure.

    Args:
        analysis: A key of `ANALYSES`.
        config: Configuration of the asset, which is the same for all weights.

    Yields:
        Lines to print and a description of each failure, for each of the weights. After a failure the other weights follow.

    Raises:
        DataError: A name is given twice, or there are no such weights.
        FileNotFoundError: Weights are not in the store yet.
    """
    if len(set(weights)) < len(weights):
        raise DataError(f"weights are {', '.join(weights)}; expected each of them once.")
    for name in weights:
        analysed_weights(store, name)
    asset = ANALYSES[analysis]
    done: list[Manifest] = []
    with open_instance() as instance:
        for name in weights:
            before = {one.inputs.content for one in results_of(store, asset, name)}
            result = run_job(instance, store.url, "analyses", [asset], name, {asset: config}, listener)
            if not result.success:
                yield [f"{name}: failed"], tuple(failures(result))
                continue
            manifest = _manifest_of(store, result, asset, name)
            done.append(manifest)
            outcome = "new" if manifest.inputs.content not in before else "up to date"
            yield summary_lines(store, name, manifest, outcome), ()
        if len(done) > 1:
            names = [one.inputs.partition.split("/")[0] for one in done]
            setting = done[0].inputs.partition.split("/")[1]
            asked = {COMPARISONS: {"analysis": analysis, "setting": setting, "weights": names}}
            result = run_job(instance, store.url, "analysis_comparison", config=asked, listener=listener)
            if result.success:
                manifest = require_manifest(store, COMPARISONS, f"{analysis}/{setting}")
                yield [f"side by side: {store.url_of(f'{manifest.folder}/{FIGURE}')}"], ()
            else:
                yield [], tuple(failures(result))


def _manifest_of(store: Store, result: Any, asset: str, name: str) -> Manifest:
    """Find the manifest that a run committed or found up to date, by its digest, which is the data version."""
    (event,) = result.get_asset_materialization_events()
    digest = event.materialization.metadata["digest"].value
    found = next((one for one in results_of(store, asset, name) if one.digest == digest), None)
    if found is None:
        raise StoreError(f"{asset}, partition {name!r}, committed {digest[:12]}, which is not in {store.url}; try again.")
    return found


def summary_lines(store: Store, weights: str, manifest: Manifest, outcome: str = "") -> list[str]:
    """List the numbers of a result and the addresses of its figures."""
    numbers: Mapping[str, float | None] = manifest.details["numbers"]
    width = max((len(name) for name in numbers), default=0)
    lines = [f"{weights} ({outcome}): {manifest.details['title']}" if outcome else f"{weights}: {manifest.details['title']}"]
    lines += [f"  {name:{width}}  {'-' if value is None else f'{value:.4g}'}" for name, value in numbers.items()]
    lines += [f"  {store.url_of(f'{manifest.folder}/{item.name}')}" for item in manifest.find(".png")]
    return lines


def list_lines(store: Store) -> list[str]:
    """List the analyses of each of the weights."""
    lines = []
    for analysis, asset in ANALYSES.items():
        for name in store.folders(asset):
            for manifest in results_of(store, asset, name):
                setting = manifest.inputs.partition.split("/")[1]
                lines.append(f"{analysis:11} {name:32} {setting}  {manifest.details['source']}")
        for setting in store.folders(f"{COMPARISONS}/{analysis}"):
            compared = current_manifest(store, COMPARISONS, f"{analysis}/{setting}")
            if compared is not None:
                names = json.dumps(compared.inputs.parameters["weights"])
                lines.append(f"{analysis:11} {'side by side':32} {setting}  {names}")
    return lines or ["nothing was analysed yet; cem-assets analyse invariance WEIGHTS..."]
