"""Transfer benchmarks: a recipe and a table of features give scores.

A recipe is a frozen set of parameters, so another k, another metric or a benchmark of one's own is other values, not code;
features are made once (`cem_assets.benchmarks.transfer.features`) and scored as often as one likes. Steps on tables are
`cem_assets.benchmarks.transfer.profiles`, accuracies `cem_assets.benchmarks.transfer.metrics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cem_assets.benchmarks.transfer import metrics
from cem_assets.benchmarks.transfer.metrics import Predictions
from cem_assets.benchmarks.transfer.neighbours import Metric, feature_matrix
from cem_assets.benchmarks.transfer.profiles import (
    replicate_correlations,
    standardise,
    standardise_by_controls,
    treatment_means,
)
from cem_assets.errors import DataError


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features and what is known of their samples.

    Attributes:
        features: (n, d), floating point.
        metadata: n rows in the same order; recipes name its columns.
        names: (d,) names of the features, or empty.
    """

    features: NDArray[np.floating[Any]]
    metadata: pd.DataFrame
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = self.features.shape
        if len(shape) != 2 or len(self.metadata) != shape[0] or (self.names and len(self.names) != shape[1]):
            raise DataError(
                f"features have shape {shape}, metadata {len(self.metadata)} rows, and there are {len(self.names)} names; "
                "expected (n, d), n and d (or no names)"
            )


@dataclass(frozen=True)
class Score:
    """One number of a benchmark.

    Attributes:
        metric: Such as "nsc_accuracy" or "knn_accuracy test1".
        value: Share, 0..1.
        interval: Half the width of its 95 % interval.
        num: Samples it was measured on.
        details: Plain data for reports: "num_right", "k" or "num_features" and so on, and "confusion" with the lists
            "predicted" and "true" of labels and the rows "counts".
    """

    metric: str
    value: float
    interval: float
    num: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def confusion(self) -> pd.DataFrame:
        """Return the confusion matrix: rows are predicted labels, columns true ones."""
        found = self.details["confusion"]
        rows, columns = pd.Index(found["predicted"], name="predicted"), pd.Index(found["true"], name="true")
        return pd.DataFrame(np.array(found["counts"], np.int64).reshape(len(rows), len(columns)), index=rows, columns=columns)


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "own"
    label: str


class NscRecipe(_Recipe):
    """Mean feature of every treatment, nearest treatment of another compound (and of other batches).

    Attributes:
        name: Of the benchmark.
        label: Column of the mechanism of action.
        compound: Column of the compound.
        treatment: Columns that together name a treatment.
        batch: Column of the batch, for the score that leaves out neighbours of the same batch too; None for no such score.
        control: Value of `compound` that marks controls, which are no treatment; None where there are none.
        metric: Of the nearest neighbour.
        normalisation: Before averaging: "standardise" over all treated samples, "controls" by the controls of each plate,
            "none".
        plate: Column of the plate, for "controls".
        min_replicate_correlation: Features whose replicates correlate less (`replicate_correlations`, on features as they
            come, controls aside) are left out; None keeps all.
        num_replicates: For that correlation.
        left_out_features: Names of features to leave out.
        drops_unusable_features: Whether features with NaN or infinite values after normalisation are left out;
            otherwise they are an error.
    """

    kind: Literal["nsc"] = "nsc"
    label: str = "moa"
    compound: str = "compound"
    treatment: Annotated[tuple[str, ...], Field(min_length=1)] = ("compound", "concentration")
    batch: str | None = None
    control: str | None = "DMSO"
    metric: Metric = "cosine"
    normalisation: Literal["standardise", "controls", "none"] = "standardise"
    plate: str = "plate"
    min_replicate_correlation: Annotated[float, Field(ge=-1, le=1)] | None = None
    num_replicates: Annotated[int, Field(ge=2)] = 3
    left_out_features: tuple[str, ...] = ()
    drops_unusable_features: bool = False


class KnnRecipe(_Recipe):
    """k nearest neighbours in a training set, for one test set or several.

    Attributes:
        name: Of the benchmark.
        label: Column of the class.
        split: Column that says which set a sample belongs to.
        train: Its value for the training set.
        tests: Its values for the test sets; empty for all others, sorted.
        k: Neighbours that vote.
        metric: Of the neighbours.
        is_standardised: Whether features are standardised by the training set.
    """

    kind: Literal["knn"] = "knn"
    label: str = "label"
    split: str = "split"
    train: str = "train"
    tests: tuple[str, ...] = ()
    k: Annotated[int, Field(ge=1)] = 11
    metric: Metric = "euclidean"
    is_standardised: bool = True


class LeaveOneOutRecipe(_Recipe):
    """k nearest neighbours among all other samples.

    Attributes:
        name: Of the benchmark.
        label: Column of the class.
        k: Neighbours that vote.
        metric: Of the neighbours.
        is_standardised: Whether features are standardised over all samples.
    """

    kind: Literal["loo_knn"] = "loo_knn"
    label: str = "label"
    k: Annotated[int, Field(ge=1)] = 11
    metric: Metric = "euclidean"
    is_standardised: bool = True


Recipe = Annotated[NscRecipe | KnnRecipe | LeaveOneOutRecipe, Field(discriminator="kind")]

BBBC021 = NscRecipe(name="bbbc021", batch="batch")
COOS7 = KnnRecipe(name="coos7", tests=("test1", "test2", "test3", "test4"))
CYCLOPS = LeaveOneOutRecipe(name="cyclops")
RECIPES: dict[str, NscRecipe | KnnRecipe | LeaveOneOutRecipe] = {"bbbc021": BBBC021, "coos7": COOS7, "cyclops": CYCLOPS}
"""Recipes of CytoImageNet's three benchmarks (arXiv:2111.11646)."""


def parse_recipe(values: Mapping[str, Any]) -> NscRecipe | KnnRecipe | LeaveOneOutRecipe:
    """Read a recipe from plain values, `kind` first: "nsc", "knn" or "loo_knn".

    Raises:
        DataError: A value is missing, unknown or senseless; all are named.
    """
    adapter: TypeAdapter[NscRecipe | KnnRecipe | LeaveOneOutRecipe] = TypeAdapter(Recipe)
    return adapter.validate_python(dict(values))


def score_transfer(recipe: NscRecipe | KnnRecipe | LeaveOneOutRecipe, table: FeatureTable) -> list[Score]:
    """Score features by a recipe.

    Args:
        recipe: What to do.
        table: Features, and metadata with the columns that the recipe names.

    Returns:
        For "nsc" the score "nsc_accuracy", and "nscb_accuracy" where the recipe has a batch; for "knn" one "knn_accuracy" for
        each test set, in the recipe's order; for "loo_knn" "loo_knn_accuracy".

    Raises:
        DataError: Columns or sets are missing, a treatment has two mechanisms, features are unusable; all are named.
    """
    if isinstance(recipe, NscRecipe):
        return _score_nsc(recipe, table)
    if isinstance(recipe, KnnRecipe):
        return _score_knn(recipe, table)
    _require(table, [recipe.label])
    features = feature_matrix(table.features)
    if recipe.is_standardised:
        features = standardise(features)[0]
    found = metrics.leave_one_out_knn_predictions(features, table.metadata[recipe.label], recipe.k, recipe.metric)
    return [_score("loo_knn_accuracy", found, k=recipe.k, distance=recipe.metric)]


def _require(table: FeatureTable, columns: Sequence[str]) -> None:
    problems = []
    for column in dict.fromkeys(columns):
        if column not in table.metadata.columns:
            problems.append(f"there is no column {column!r}")
        elif num := int(table.metadata[column].isna().sum()):
            problems.append(f"{column!r} is missing in {num} rows")
    if problems:
        known = ", ".join(map(str, table.metadata.columns)) or "none"
        raise DataError(f"metadata do not fit the recipe: {'; '.join(problems)}; columns found: {known}")


def _score(metric: str, found: Predictions, **details: Any) -> Score:
    confusion = found.confusion()
    plain = {"predicted": list(confusion.index), "true": list(confusion.columns), "counts": confusion.to_numpy().tolist()}
    num, value = found.num_counted(), found.accuracy()
    interval = metrics.confidence_interval(value, num)
    return Score(metric, value, interval, num, {"num_right": found.num_right(), **details, "confusion": plain})


def _score_knn(recipe: KnnRecipe, table: FeatureTable) -> list[Score]:
    _require(table, [recipe.label, recipe.split])
    features = feature_matrix(table.features)
    sets = table.metadata[recipe.split].astype(str).to_numpy()
    labels = table.metadata[recipe.label].to_numpy()
    tests = recipe.tests or tuple(sorted(set(sets.tolist()) - {recipe.train}))
    if missing := [name for name in (recipe.train, *tests) if name not in sets] or ([] if tests else ["any test set"]):
        raise DataError(
            f"{recipe.split!r} has no samples of {', '.join(missing)}; found {', '.join(sorted(set(sets.tolist())))}"
        )
    train = features[sets == recipe.train]
    others = [features[sets == name] for name in tests]
    if recipe.is_standardised:
        train, *others = standardise(train, *others)
    scores = []
    for name, test in zip(tests, others, strict=True):
        found = metrics.knn_predictions(
            train, labels[sets == recipe.train], test, labels[sets == name], recipe.k, recipe.metric
        )
        scores.append(_score(f"knn_accuracy {name}", found, k=recipe.k, distance=recipe.metric, num_training=len(train)))
    return scores


def _score_nsc(recipe: NscRecipe, table: FeatureTable) -> list[Score]:
    needs_plate = recipe.normalisation == "controls"
    batch = [recipe.batch] if recipe.batch is not None else []
    _require(table, [recipe.label, recipe.compound, *recipe.treatment, *batch, *([recipe.plate] if needs_plate else [])])
    if recipe.left_out_features and not table.names:
        raise DataError("the recipe leaves features out by name, but the table has no names; give `FeatureTable.names`")
    data = table.metadata.reset_index(drop=True)
    is_control = (
        (data[recipe.compound] == recipe.control).to_numpy() if recipe.control is not None else np.zeros(len(data), bool)
    )
    if needs_plate and not is_control.any():
        raise DataError(f"no row has the control {recipe.control!r} in {recipe.compound!r}, which the recipe normalises by")
    treated = data[~is_control]
    treatments = list(treated[list(recipe.treatment)].itertuples(index=False, name=None))

    features = table.features.astype(np.float64)
    is_kept = np.ones(features.shape[1], np.bool_)
    if recipe.left_out_features:
        is_kept &= ~np.isin(np.array(table.names), np.array(recipe.left_out_features))
    if recipe.min_replicate_correlation is not None:
        correlations = replicate_correlations(features[~is_control], treatments, recipe.num_replicates)
        is_kept &= correlations >= recipe.min_replicate_correlation
    if needs_plate:
        features = standardise_by_controls(features, data[recipe.plate].tolist(), is_control)
    features = features[~is_control]
    if recipe.drops_unusable_features:
        is_kept &= np.isfinite(features).all(axis=0)
    if not is_kept.any():
        raise DataError(f"none of {len(is_kept)} features is left; loosen the recipe's choice of features")
    names = np.array(table.names or [str(n) for n in range(len(is_kept))], dtype=object)[is_kept]
    features = feature_matrix(pd.DataFrame(features[:, is_kept], columns=pd.Index(names)))
    if recipe.normalisation == "standardise":
        features = standardise(features)[0]
    means, order = treatment_means(features, treatments)
    columns = _columns_of_treatments(recipe, treated, treatments, order)
    details = {"distance": recipe.metric, "num_features": int(is_kept.sum()), "num_treatments": len(order)}
    moa, compound = columns[recipe.label], columns[recipe.compound]
    scores = [_score("nsc_accuracy", metrics.not_same_compound_predictions(means, moa, compound, recipe.metric), **details)]
    if recipe.batch is not None:
        members: dict[Any, set[Any]] = {}
        for name, value in zip(treatments, treated[recipe.batch], strict=True):
            members.setdefault(name, set()).add(value)
        found = metrics.not_same_compound_predictions(
            means, moa, compound, recipe.metric, [members[name] for name in order], "leave_out"
        )
        if found.num_counted():
            scores.append(_score("nscb_accuracy", found, **details, num_left_out=len(order) - found.num_counted()))
    return scores


def _columns_of_treatments(
    recipe: NscRecipe, treated: pd.DataFrame, treatments: list[Any], order: list[Any]
) -> dict[str, list[Any]]:
    """Look up the mechanism and compound of every treatment, refusing those with several."""
    columns: dict[str, list[Any]] = {}
    problems = []
    for column in (recipe.label, recipe.compound):
        values: dict[Any, set[Any]] = {}
        for name, value in zip(treatments, treated[column], strict=True):
            values.setdefault(name, set()).add(value)
        problems += [f"{name} has {len(found)} values of {column!r}" for name, found in values.items() if len(found) > 1]
        columns[column] = [next(iter(values[name])) for name in order]
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise DataError(f"a treatment has one mechanism and one compound: {shown}; correct the metadata or `treatment`")
    return columns
