"""Recipes of transfer benchmarks: which score is computed from features, and how.

A recipe is a frozen set of parameters, so another k, another metric, or a benchmark of your own needs other values and no code.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cem_assets.benchmarks.transfer.neighbours import DistanceMetric


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "own"
    label: str


class NscRecipe(_Recipe):
    """Average the features of every treatment, and compare it with the nearest treatment of another compound (and batch).

    Attributes:
        name: Name of the benchmark.
        label: Column of the mechanism of action.
        compound: Column of the compound.
        treatment: Columns that together name a treatment.
        batch: Column of the batch, for a second score (NSCB) that leaves out neighbours of the same batch too; None computes
            no such score.
        control: Value of `compound` that marks controls, which are not a treatment; None if there are no controls.
        metric: Distance by which the nearest neighbour is found.
        normalisation: What is done before averaging: "standardise" standardises over all treated samples, "controls" by the
            controls of each plate, and "none" leaves features as they are.
        plate: Column of the plate, for "controls".
        min_replicate_correlation: Features whose replicates correlate less than this are left out (`replicate_correlations`,
            on features before normalisation, without controls); None keeps all features.
        num_replicates: Number of replicates for that correlation.
        left_out_features: Names of features to leave out.
        drops_unusable_features: Whether features with NaN or infinite values after normalisation are left out; otherwise they
            are an error.
    """

    kind: Literal["nsc"] = "nsc"
    label: str = "moa"
    compound: str = "compound"
    treatment: Annotated[tuple[str, ...], Field(min_length=1)] = ("compound", "concentration")
    batch: str | None = None
    control: str | None = "DMSO"
    metric: DistanceMetric = "cosine"
    normalisation: Literal["standardise", "controls", "none"] = "standardise"
    plate: str = "plate"
    min_replicate_correlation: Annotated[float, Field(ge=-1, le=1)] | None = None
    num_replicates: Annotated[int, Field(ge=2)] = 3
    left_out_features: tuple[str, ...] = ()
    drops_unusable_features: bool = False


class KnnRecipe(_Recipe):
    """Let the k nearest neighbours in a training set vote on the class of each sample of one or several test sets.

    Attributes:
        name: Name of the benchmark.
        label: Column of the class.
        split: Column that says which set a sample belongs to.
        train: Value of `split` for the training set.
        tests: Values of `split` for the test sets; empty takes all other values, sorted.
        k: Number of neighbours that vote.
        metric: Distance by which neighbours are found.
        is_standardised: Whether features are standardised by the training set.
    """

    kind: Literal["knn"] = "knn"
    label: str = "label"
    split: str = "split"
    train: str = "train"
    tests: tuple[str, ...] = ()
    k: Annotated[int, Field(ge=1)] = 11
    metric: DistanceMetric = "euclidean"
    is_standardised: bool = True


class LeaveOneOutRecipe(_Recipe):
    """Let the k nearest neighbours among all other samples vote on the class of each sample.

    Attributes:
        name: Name of the benchmark.
        label: Column of the class.
        k: Number of neighbours that vote.
        metric: Distance by which neighbours are found.
        is_standardised: Whether features are standardised over all samples.
    """

    kind: Literal["loo_knn"] = "loo_knn"
    label: str = "label"
    k: Annotated[int, Field(ge=1)] = 11
    metric: DistanceMetric = "euclidean"
    is_standardised: bool = True


Recipe = NscRecipe | KnnRecipe | LeaveOneOutRecipe
