"""What exactly a transfer score is: a benchmark, weights and every parameter, known before anything is computed.

`cem_assets.benchmarks.transfer.stage` carries a plan out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from cem_assets.benchmarks.data.transfer_sets import PreparedTransfer, open_transfer
from cem_assets.benchmarks.scores.inputs import GIVEN, BenchmarkScoreParams, ScoredWeights, find_weights, in_words
from cem_assets.benchmarks.scores.stored import ScoreKey, parameters_digest
from cem_assets.benchmarks.transfer.features.params import FeatureSettings
from cem_assets.benchmarks.transfer.params import KnnRecipe, LeaveOneOutRecipe, NscRecipe, Recipe
from cem_assets.catalog.benchmarks import TransferBenchmark
from cem_assets.errors import DataError
from cem_assets.store.store import Store

FUSED = "+"
"""Joins the names of weights whose features are fused."""
CONTROL = "(control)"
"""The compound that recipes see in rows that a benchmark marks as controls."""
PROTOCOLS: dict[str, type[NscRecipe] | type[KnnRecipe] | type[LeaveOneOutRecipe]] = {
    "treatments": NscRecipe,
    "train_and_test": KnnRecipe,
    "leave_one_out": LeaveOneOutRecipe,
}
"""Protocols of the catalogue. "treatments" computes NSCB too if its exclusions name "compound_and_batch"."""
_EXCLUSIONS = ("compound", "compound_and_batch")
_FIXED = ("name", "kind", "control")
"""Fields of recipes that parameters cannot change."""


@dataclass(frozen=True)
class TransferPlan:
    """Everything that one score depends on.

    Attributes:
        weights: One for plain scores, several whose features are fused, or none for given features.
        settings: How images become features; None for given features.
        recipe: How the score is computed from features.
        asked: The parameters that the user gave.
        key: Names the partition.
    """

    benchmark: PreparedTransfer
    weights: tuple[ScoredWeights, ...]
    settings: FeatureSettings | None
    recipe: Recipe
    asked: BenchmarkScoreParams
    key: ScoreKey

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters that decide the score, as JSON values."""
        return _parameters(self.settings, self.recipe)


def plan_transfer(store: Store, row: TransferBenchmark, weights: str, asked: BenchmarkScoreParams) -> TransferPlan:
    """Look up everything that a score depends on, before anything is computed.

    Raises:
        FileNotFoundError: The benchmark or the weights are not committed; the error says what to materialize.
        DataError: Parameters are unknown or not valid, or the weights do not fit the benchmark.
    """
    benchmark = open_transfer(store, row.name)
    settings, recipe = parse_params(row, asked.params)
    names = weights.split(FUSED)
    if bool(benchmark.feature_names) != (weights == GIVEN):
        what, wanted = (
            ("a table of features", f'expected "{GIVEN}"') if benchmark.feature_names else ("images", "expected weights")
        )
        raise DataError(f"benchmark {row.name!r} holds {what}; {wanted}, found {weights!r}.")
    if len(set(names)) != len(names) or not all(names):
        raise DataError(f'weights are {weights!r}; expected one name, or different names joined by "{FUSED}".')
    found = () if weights == GIVEN else tuple(find_weights(store, name) for name in names)
    used = settings if found else None
    parameters = parameters_digest(_parameters(used, recipe))
    return TransferPlan(benchmark, found, used, recipe, asked, ScoreKey(row.name, weights, parameters, asked.seed))


def parse_params(row: TransferBenchmark, changes: Mapping[str, Any]) -> tuple[FeatureSettings, Recipe]:
    """Combine the parameters of a benchmark's row with changes to them.

    Args:
        row: Its `params` name the `protocol`. All others are fields of that protocol's recipe (`num_neighbours` is another name
            of `k`), fields of `FeatureSettings`, and for "treatments" the `exclusions`.
        changes: The same kind of parameters; they replace those of the row.

    Raises:
        DataError: A name is unknown or a value is not valid; the error lists all of them.
    """
    what = f"parameters of benchmark {row.name!r}"
    merged: dict[str, Any] = {}
    for values in (row.params, changes):
        if "k" in values and "num_neighbours" in values:
            raise DataError(f"{what} name k and num_neighbours, which are the same; expected one of them.")
        merged |= {("k" if name == "num_neighbours" else name): value for name, value in values.items()}
    protocol, exclusions = merged.pop("protocol", None), merged.pop("exclusions", ())
    kind = PROTOCOLS.get(protocol) if isinstance(protocol, str) else None
    if kind is None:
        raise DataError(f"{what}: protocol is {protocol!r}; expected one of {', '.join(PROTOCOLS)}.")
    if not isinstance(exclusions, list | tuple) or any(one not in _EXCLUSIONS for one in exclusions):
        raise DataError(f"{what}: exclusions are {exclusions!r}; expected some of {', '.join(_EXCLUSIONS)}.")
    of_features = {name: merged.pop(name) for name in FeatureSettings.model_fields if name in merged}
    if kind is NscRecipe:
        if (k := merged.pop("k", 1)) != 1:
            raise DataError(f"{what}: k is {k!r}; treatments are compared with their nearest one, expected 1.")
        batch = {"batch": "batch"} if "compound_and_batch" in exclusions else {}
        merged = {"label": "label", "control": CONTROL if row.has_controls else None, **batch, **_checked(merged, kind, what)}
    else:
        merged = _checked(merged, kind, what)
    try:
        return FeatureSettings.model_validate(of_features), kind.model_validate({"name": row.name, **merged})
    except ValidationError as error:
        raise in_words(error, what) from error


def _checked(values: dict[str, Any], kind: type[BaseModel], what: str) -> dict[str, Any]:
    known = [name for name in kind.model_fields if name not in _FIXED]
    if unknown := sorted(set(values) - set(known)):
        features = ", ".join(FeatureSettings.model_fields)
        raise DataError(f"{what}: {', '.join(unknown)} unknown; expected some of {', '.join(known)}; or of {features}.")
    return values


def _parameters(settings: FeatureSettings | None, recipe: Recipe) -> dict[str, Any]:
    features = settings.model_dump(mode="json") if settings else {}
    return {"task": "transfer", "features": features, "recipe": recipe.model_dump(mode="json", exclude={"name"})}
