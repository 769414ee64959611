"""Reading benchmark scores and the leaderboard, without Dagster; part of `cem_assets.readers`, which has both by name."""

import pandas as pd

from cem_assets.benchmarks.leaderboard.stored import read_standings
from cem_assets.benchmarks.scores import stored as scores
from cem_assets.store.assets import LEADERBOARD
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import open_store


def read_scores(benchmark: str = "", weights: str = "", root: str | None = None) -> pd.DataFrame:
    """Read benchmark scores: every number of every run, also of single classes.

    Args:
        benchmark: Of this one alone; empty for all.
        weights: Of these alone; empty for all.
        root: The store; default CEM_ASSETS_ROOT.

    Returns:
        The columns of `cem_assets.benchmarks.scores.stored.ScoreRow`, and `digest` and `folder` of the run; empty where there
        are none.
    """
    return scores.read_scores(open_store(root), benchmark, weights)


def read_leaderboard(root: str | None = None) -> pd.DataFrame:
    """Read the current leaderboard: means and spread over seeds, ranks, published figures, what changed.

    Args:
        root: The store; default CEM_ASSETS_ROOT.

    Returns:
        Its rows in order; `cem_assets.benchmarks.leaderboard.standings.make_standings` says what the columns are.

    Raises:
        FileNotFoundError: There is none yet.
    """
    store = open_store(root)
    return read_standings(store, require_manifest(store, LEADERBOARD))
