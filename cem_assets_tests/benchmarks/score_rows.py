"""Made-up score rows for tests of standings, promotion and the leaderboard."""

from dataclasses import asdict

import pandas as pd

from cem_assets.benchmarks.scores.stored import ScoreRow


def row(benchmark, weights, value, seed=0, **changes):
    """Make a main row of a segmentation benchmark."""
    known = {
        "weights_digest": f"{weights}-d1",
        "release": "",
        "release_digest": "",
        "parameters": "aaaaaaaaaaaa",
        "finetune_layer": "none",
        "iterations": 1000,
        "test_set": "all",
        "metric": "iou",
        "class_name": "",
        "low": value,
        "high": value,
        "num": 10,
        "is_main": True,
        "code_version": "1",
    }
    return ScoreRow(benchmark=benchmark, weights=weights, value=value, seed=seed, **{**known, **changes})


def frame(*rows):
    return pd.DataFrame([asdict(item) for item in rows], columns=list(ScoreRow.__dataclass_fields__))
