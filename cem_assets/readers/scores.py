"""Reading benchmark scores and the leaderboard without Dagster; `cem_assets.readers` has these functions too."""

import pandas as pd

from cem_assets.benchmarks.leaderboard.stored import read_standings
from cem_assets.benchmarks.scores import stored as scores
from cem_assets.store.assets import LEADERBOARD
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import open_store


def read_scores(benchmark: str = "", weights: str = "", root: str | None = None) -> pd.DataFrame:
    """Read benchmark scores: every number of every run, also of single classes.

    Args:
        benchmark: Only the scores of this benchmark; empty takes all benchmarks.
        weights: Only the scores of these weights; empty takes all weights.
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        A table with the columns of `cem_assets.benchmarks.scores.stored.ScoreRow`, and `digest` and `folder` of the run. It has
        no rows if there are no scores.
    """
    return scores.read_scores(open_store(root), benchmark, weights)


def read_leaderboard(root: str | None = None) -> pd.DataFrame:
    """Read the current leaderboard: means and spread over seeds, ranks, published figures, and what changed.

    Args:
        root: URL of the store; None takes it from CEM_ASSETS_ROOT.

    Returns:
        Its rows in order; `cem_assets.benchmarks.leaderboard.standings.make_standings` explains the columns.

    Raises:
        FileNotFoundError: There is no leaderboard yet.
    """
    store = open_store(root)
    return read_standings(store, require_manifest(store, LEADERBOARD))
