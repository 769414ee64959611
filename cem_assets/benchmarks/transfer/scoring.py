"""Scores of transfer benchmarks, from a recipe and a table of features.

Features are computed once (`cem_assets.benchmarks.transfer.features`) and can then be scored by any number of recipes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cem_assets.benchmarks.transfer import metrics
from cem_assets.benchmarks.transfer.metrics import Predictions
from cem_assets.benchmarks.transfer.neighbours import feature_matrix
from cem_assets.benchmarks.transfer.params import KnnRecipe, NscRecipe, Recipe
from cem_assets.benchmarks.transfer.profiles import (
    replicate_correlations,
    standardise,
    standardise_by_controls,
    treatment_means,
)
from cem_assets.errors import DataError


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features, and what is known about their samples.

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
            raise ValueError(
                f"features have shape {shape}, metadata {len(self.metadata)} rows, and there are {len(self.names)} names; "
                "expected (n, d), n and d (or no names)"
            )


@dataclass(frozen=True)
class Score:
    """One number of a benchmark.

    Attributes:
        metric: Such as "nsc_accuracy" or "knn_accuracy test1".
        value: A share, 0..1.
        interval: Half the width of its 95 % confidence interval.
        num: Number of samples it was measured on.
        details: JSON values for reports: "num_right", and depending on the recipe "k", "num_features" and others. "confusion"
            holds the lists "predicted" and "true" of labels, and the rows "counts".
    """

    metric: str
    value: float
    interval: float
    num: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def confusion(self) -> pd.DataFrame:
        """Return the confusion matrix: rows are predicted labels, columns are true labels."""
        found = self.details["confusion"]
        rows, columns = pd.Index(found["predicted"], name="predicted"), pd.Index(found["true"], name="true")
        return pd.DataFrame(np.array(found["counts"], np.int64).reshape(len(rows), len(columns)), index=rows, columns=columns)


def score_transfer(recipe: Recipe, table: FeatureTable) -> list[Score]:
    """Score features by a recipe.

    Args:
        table: Its metadata must have the columns that the recipe names.

    Returns:
        An `NscRecipe` gives "nsc_accuracy", and "nscb_accuracy" if the recipe has a batch. A `KnnRecipe` gives one
        "knn_accuracy" for each test set, in the recipe's order. A `LeaveOneOutRecipe` gives "loo_knn_accuracy".

    Raises:
        DataError: Columns or sets are missing, a treatment has two mechanisms, or features are not usable; the error names
            them.
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
        raise DataError(f"the metadata do not fit the recipe: {'; '.join(problems)}; columns found: {known}")


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
        raise DataError("left_out_features names features, but the table has no names of features. Leave the parameter out.")
    data = table.metadata.reset_index(drop=True)
    is_control = (
        (data[recipe.compound] == recipe.control).to_numpy() if recipe.control is not None else np.zeros(len(data), bool)
    )
    if needs_plate and not is_control.any():
        raise DataError(f"no row has the control {recipe.control!r} in {recipe.compound!r}, which the recipe normalises by")
    if is_control.all():
        raise DataError(f"every row has the control {recipe.control!r} in {recipe.compound!r}; expected treatments too")
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
        raise DataError(
            f"none of {len(is_kept)} features is left. Lower min_replicate_correlation, or leave out fewer features."
        )
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
    """Look up the mechanism and compound of every treatment; a treatment with several of either is an error."""
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
        raise DataError(
            f"every treatment must have one mechanism and one compound, but {shown}. Correct the metadata, or the parameter "
            "treatment."
        )
    return columns
