"""Stage `analyses/comparisons`: one figure of the results of several weights that were analysed with the same setting.

Nothing is measured here; the committed results are read. A setting stands for the images and parameters of an analysis, see
`cem_assets.analyses.results`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cem_assets.analyses.datasets.stage import map_heading, read_distances, read_points
from cem_assets.analyses.invariance.stage import read_rates
from cem_assets.analyses.occlusion.stage import read_maps
from cem_assets.analyses.results import ANALYSES, Findings, read_table, results_of, track, write_findings
from cem_assets.errors import DataError
from cem_assets.execution.stage import StageResult, begin
from cem_assets.store.assets import CODE_VERSIONS, COMPARISONS
from cem_assets.store.manifests import Inputs, Manifest, current_manifest
from cem_assets.store.store import Store

FIGURE = "comparison.png"


@dataclass(frozen=True)
class Compared:
    """Results of one analysis with one setting.

    Attributes:
        analysis: A key of `ANALYSES`.
        setting: Digest of images and parameters.
        results: Manifest by name of the weights, in the order in which they are shown.
    """

    analysis: str
    setting: str
    results: dict[str, Manifest]


def find_results(store: Store, analysis: str, setting: str = "", weights: Sequence[str] = ()) -> Compared:
    """Find results that can be compared.

    Args:
        analysis: A key of `ANALYSES`.
        setting: Digest of images and parameters; empty takes the setting of the newest result.
        weights: Names of weights; empty takes all that were analysed with that setting.

    Raises:
        DataError: There is no such analysis.
        FileNotFoundError: Results are missing; the text names them.
    """
    if analysis not in ANALYSES:
        raise DataError(f"analysis {analysis!r:.80} is not known; expected one of {', '.join(ANALYSES)}.")
    asset = ANALYSES[analysis]
    every = {name: results_of(store, asset, name) for name in weights or store.folders(asset)}
    newest = sorted((str(one.run["finished"]), one.inputs.partition) for found in every.values() for one in found)
    chosen = setting or (newest[-1][1].rsplit("/", 1)[-1] if newest else "")
    results: dict[str, Manifest] = {}
    for name in every:
        found = current_manifest(store, asset, f"{name}/{chosen}") if chosen else None
        if found is not None:
            results[name] = found
    missing = [name for name in weights if name not in results]
    if missing or not results:
        raise FileNotFoundError(
            f"{asset} has no result of {', '.join(missing) or 'any weights'}"
            + (f" with setting {chosen!r:.40}" if chosen else "")
            + f"; materialize it first, with the same images and parameters (`cem-assets analyse {analysis} WEIGHTS...`)."
        )
    if not weights:  # random weights, to which all are compared, come last
        results = dict(sorted(results.items(), key=lambda item: (item[1].details["method"] == "random", item[0])))
    return Compared(analysis, chosen, results)


def compare_weights(
    store: Store, analysis: str, setting: str = "", weights: Sequence[str] = (), run_id: str = ""
) -> StageResult:
    """Draw the results of several weights into one figure, and their numbers into one table.

    Args:
        analysis: A key of `ANALYSES`.
        setting: Digest of images and parameters, as in `find_results`.
        weights: Names of weights, as in `find_results`.

    Returns:
        The committed partition of `analyses/comparisons`, named by analysis and setting: `numbers.parquet` (weights, number,
        value) and `comparison.png`.

    Raises:
        DataError: There is no such analysis.
        FileNotFoundError: There are no such results.
    """
    compared = find_results(store, analysis, setting, weights)
    asset = ANALYSES[analysis]
    inputs = Inputs(
        COMPARISONS,
        f"{analysis}/{compared.setting}",
        CODE_VERSIONS[COMPARISONS],
        {"weights": list(compared.results)},
        {f"{asset}/{one.inputs.partition}": one.digest for one in compared.results.values()},
    )
    stage = begin(store, inputs, run_id)
    if stage.up_to_date:
        return stage.up_to_date
    numbers = {name: dict(one.details["numbers"]) for name, one in compared.results.items()}
    rows = [
        {"weights": name, "number": number, "value": value}
        for name, found in numbers.items()
        for number, value in found.items()
    ]
    schema = pa.schema([("weights", pa.string()), ("number", pa.string()), ("value", pa.float64())])
    findings = Findings(
        tables={"numbers": pa.Table.from_pylist(rows, schema=schema)},
        figures={FIGURE: _FIGURES[analysis](store, compared)},
        numbers={
            f"{number}/{name}": float("nan") if value is None else float(value)
            for name, found in numbers.items()
            for number, value in found.items()
        },
        counts={"weights": len(compared.results)},
    )
    first = next(iter(compared.results.values()))
    result = write_findings(stage, findings, {"analysis": analysis, "title": first.details["title"]})
    track(store, result.manifest, f"{analysis}: {', '.join(compared.results)}"[:250], findings, {"setting": compared.setting})
    return result


def _title(compared: Compared) -> str:
    return str(next(iter(compared.results.values())).details["title"])


def _draw_invariance(store: Store, compared: Compared) -> bytes:
    from cem_assets.analyses.invariance.figures import firing_rates_png

    return firing_rates_png({name: read_rates(store, one) for name, one in compared.results.items()}, _title(compared))


def _draw_occlusion(store: Store, compared: Compared) -> bytes:
    from cem_assets.analyses.occlusion.figures import occlusion_png

    found = {name: read_maps(store, one) for name, one in compared.results.items()}
    images = next(iter(found.values()))[0]
    return occlusion_png(images, {name: maps for name, (_, maps) in found.items()}, _title(compared))


def _draw_organelles(store: Store, compared: Compared) -> bytes:
    from cem_assets.analyses.organelles.figures import organelles_png

    scores = {
        name: {
            row["organelle"]: (row["consensus_correlation"], row["consensus_held_out"])
            for row in read_table(store, one, "organelles").to_pylist()
        }
        for name, one in compared.results.items()
    }
    num = next(iter(compared.results.values())).inputs.parameters["num_channels"]
    return organelles_png(scores, _title(compared), f"correlation with the mask,\nmean of {num} channels")


def _draw_maps(store: Store, compared: Compared) -> bytes:
    from cem_assets.analyses.datasets.figures import dataset_maps_png

    labels: list[str] = []
    points = {}
    for name, one in compared.results.items():
        labels, found = read_points(store, one)
        points[map_heading(name, float(one.details["numbers"]["own_neighbours"]))] = found
    return dataset_maps_png(points, labels, _title(compared))


def _draw_distances(store: Store, compared: Compared) -> bytes:
    from cem_assets.analyses.datasets.figures import distance_tables_png

    names: list[str] = []
    tables = {}
    for weights, one in compared.results.items():
        names, tables[weights] = read_distances(store, one)
    return distance_tables_png(names, tables, _title(compared))


_FIGURES: dict[str, Callable[[Store, Compared], bytes]] = {
    "invariance": _draw_invariance,
    "occlusion": _draw_occlusion,
    "masks": _draw_organelles,
    "umap": _draw_maps,
    "frechet": _draw_distances,
}
