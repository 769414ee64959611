"""Stage `analyses/invariance`: how far the units of an encoder still fire after changes of the image.

Rates are measured in `cem_assets.analyses.invariance.rates`; the changes are `cem_assets.analyses.invariance.transformations`.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cem_assets.analyses.images import ImageParams, ImagePlan, plan_images
from cem_assets.analyses.params import InvarianceParams
from cem_assets.analyses.results import AnalysisPlan, Findings, analysed_weights, build_weights, commit_analysis, read_table
from cem_assets.execution.stage import Progress, StageResult, no_progress
from cem_assets.store.assets import INVARIANCE
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store

if TYPE_CHECKING:
    from cem_assets.analyses.invariance.rates import FiringRates

TITLE = "Mean firing rate under changes of the image"
RATES = "firing_rates"


def analyse_invariance(
    store: Store,
    weights: str,
    images: ImageParams,
    params: InvarianceParams,
    device: str = "auto",
    run_id: str = "",
    progress: Progress = no_progress,
) -> StageResult:
    """Measure the firing rates of an encoder's units.

    Args:
        weights: Name of committed weights.
        images: The images that are changed; each is fitted to 224 x 224 px.
        device: "auto", "cpu" or "cuda"; decides no number beyond rounding.

    Returns:
        The committed partition: `firing_rates.parquet` (transformation, strength, unit, local_rate), `mean_rates.parquet`,
        `firing_rates.png`.

    Raises:
        DataError: The weights are not known, or images or the layer cannot be used.
        FileNotFoundError: Weights or images are not in the store.
    """
    found = analysed_weights(store, weights)
    chosen = plan_images(store, images)
    parameters = {**params.model_dump(mode="json"), **chosen.parameters}
    plan = AnalysisPlan(INVARIANCE, found, parameters, chosen.upstream, chosen.source)
    return commit_analysis(store, plan, run_id, lambda: _find(store, plan, chosen, params, device, progress))


def _find(
    store: Store, plan: AnalysisPlan, chosen: ImagePlan, params: InvarianceParams, device: str, progress: Progress
) -> Findings:
    from cem_assets.analyses.invariance.figures import firing_rates_png
    from cem_assets.analyses.invariance.rates import measure_invariance

    pictures = chosen.read()
    encoder, norms = build_weights(store, plan.weights, device)
    rates = measure_invariance(encoder, pictures.fitted(), norms, params, progress)
    numbers: dict[str, float] = {}
    for name, one in rates.items():
        changed = [place for place, strength in enumerate(one.strengths) if strength != _identity(name)]
        numbers[f"mean_rate_{name}"] = float(one.mean_rates[changed].mean()) if changed else float("nan")
    first = next(iter(rates.values()))
    numbers["firing_units_share"] = float(first.is_firing.mean())
    numbers["chance"] = float(first.global_rates[first.is_firing].mean()) if first.is_firing.any() else float("nan")
    title = f"{TITLE}: {len(pictures.images)} images, {chosen.source}"
    return Findings(
        tables={RATES: _unit_table(rates), "mean_rates": _mean_table(rates)},
        figures={"firing_rates.png": firing_rates_png({plan.weights.name: rates}, title)},
        numbers=numbers,
        counts={"images": len(pictures.images), "units": len(first.global_rates)},
        details={"title": title},
    )


def _identity(name: str) -> float:
    from cem_assets.analyses.invariance.transformations import TRANSFORMATIONS

    return TRANSFORMATIONS[name].identity


def _unit_table(rates: "dict[str, FiringRates]") -> pa.Table:
    """One row for each transformation, strength and unit; NaN for units that fire for no image."""
    pieces = []
    for name, one in rates.items():
        num_strengths, num_units = one.local_rates.shape
        pieces.append(
            pa.table(
                {
                    "transformation": pa.array([name] * num_strengths * num_units),
                    "strength": np.repeat(np.array(one.strengths), num_units),
                    "unit": np.tile(np.arange(num_units, dtype=np.int32), num_strengths),
                    "local_rate": one.local_rates.ravel(),
                    "global_rate": np.tile(one.global_rates, num_strengths),
                    "num_images": np.full(num_strengths * num_units, one.num_images, np.int32),
                }
            )
        )
    return pa.concat_tables(pieces)


def _mean_table(rates: "dict[str, FiringRates]") -> pa.Table:
    rows = [
        {"transformation": name, "strength": strength, "mean_rate": float(mean), "firing_units": int(one.is_firing.sum())}
        for name, one in rates.items()
        for strength, mean in zip(one.strengths, one.mean_rates, strict=True)
    ]
    return pa.Table.from_pylist(rows)


def read_rates(store: Store, manifest: Manifest) -> "dict[str, FiringRates]":
    """Read the firing rates of a committed result, as `measure_invariance` gave them."""
    from cem_assets.analyses.invariance.rates import FiringRates

    frame = read_table(store, manifest, RATES).to_pandas()
    found = {}
    for name in dict.fromkeys(frame["transformation"]):
        rows = frame[frame["transformation"] == name]
        num_units = int(rows["unit"].max()) + 1
        local = rows["local_rate"].to_numpy(np.float64).reshape(-1, num_units)
        strengths = tuple(rows["strength"].to_numpy(np.float64)[::num_units].tolist())
        shares = rows["global_rate"].to_numpy(np.float64)[:num_units]
        found[name] = FiringRates(name, strengths, local, shares, int(rows["num_images"].iloc[0]))
    return found
