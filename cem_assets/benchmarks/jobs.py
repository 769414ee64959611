"""Jobs of the benchmarks."""

import dagster as dg

from cem_assets.benchmarks.assets import benchmark_data, benchmark_scores, contamination, leaderboard, promotions
from cem_assets.platform.partitions import benchmark_rows, scored_pairs

benchmark_preparation = dg.define_asset_job(
    "benchmark_data",
    dg.AssetSelection.assets(benchmark_data),
    description="Prepares the data of one benchmark.",
    partitions_def=benchmark_rows,
)

benchmark_scoring = dg.define_asset_job(
    "benchmark_scores",
    dg.AssetSelection.assets(benchmark_scores),
    description="Scores one set of weights on one benchmark.",
    partitions_def=scored_pairs,
)

benchmark_leaderboard = dg.define_asset_job(
    "benchmark_leaderboard", dg.AssetSelection.assets(leaderboard), description="Makes a leaderboard of all scores."
)

benchmark_contamination = dg.define_asset_job(
    "benchmark_contamination",
    dg.AssetSelection.assets(contamination),
    description="Compares a release with the test images of all benchmarks.",
)

benchmark_promotion = dg.define_asset_job(
    "benchmark_promotion", dg.AssetSelection.assets(promotions), description="Judges whether weights become champion."
)
