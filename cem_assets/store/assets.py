"""The names of the assets, which are also their folders in the store, and their code versions.

Partition `vnc` of the asset `cem/raw_patches` is stored under `<root>/cem/raw_patches/vnc/`. Readers accept the short names of
`STAGES` as well.
"""

from cem_assets.errors import DataError

VOLUMES = "cem/volumes"
RAW = "cem/raw_patches"
DEDUPLICATED = "cem/deduplicated_patches"
SCORES = "cem/patch_scores"
FILTERED = "cem/filtered_patches"
SUBVOLUMES = "cem/subvolumes"
CLASSIFIER = "cem/patch_classifier"
LABELS = "cem/patch_labels"
RELEASES = "cem/releases"

SOURCE_METADATA = "cytoimagenet/source_metadata"
LABEL_TABLE = "cytoimagenet/label_table"
CROPS = "cytoimagenet/crops"
TEST_IMAGES = "cytoimagenet/test_images"
CYTO_RELEASES = "cytoimagenet/releases"
CLASS_MAPS = "cytoimagenet/class_maps"

WEIGHTS = "pretraining/weights"

BENCHMARK_DATA = "benchmarks/data"
BENCHMARK_FEATURES = "benchmarks/features"
CONTAMINATION = "benchmarks/contamination"
BENCHMARK_SCORES = "benchmarks/scores"
LEADERBOARD = "benchmarks/leaderboard"
PROMOTIONS = "benchmarks/promotions"

INVARIANCE = "analyses/invariance"
OCCLUSION = "analyses/occlusion"
ORGANELLES = "analyses/organelles"
DATASET_MAPS = "analyses/dataset_maps"
DATASET_DISTANCES = "analyses/dataset_distances"
COMPARISONS = "analyses/comparisons"

STAGES: dict[str, str] = {
    "volumes": VOLUMES,
    "raw": RAW,
    "deduplicated": DEDUPLICATED,
    "scores": SCORES,
    "filtered": FILTERED,
}

CODE_VERSIONS: dict[str, str] = {
    VOLUMES: "1",
    RAW: "1",
    DEDUPLICATED: "1",
    SCORES: "2",  # batch normalization is folded into the convolutions, so logits differ by rounding
    FILTERED: "1",
    SUBVOLUMES: "1",
    CLASSIFIER: "2",
    RELEASES: "1",
    SOURCE_METADATA: "1",
    LABEL_TABLE: "1",
    CROPS: "1",
    TEST_IMAGES: "1",
    CYTO_RELEASES: "1",
    CLASS_MAPS: "1",
    WEIGHTS: "1",
    BENCHMARK_DATA: "1",
    BENCHMARK_FEATURES: "1",
    CONTAMINATION: "1",
    BENCHMARK_SCORES: "1",
    LEADERBOARD: "1",
    PROMOTIONS: "1",
    INVARIANCE: "1",
    OCCLUSION: "1",
    ORGANELLES: "1",
    DATASET_MAPS: "1",
    DATASET_DISTANCES: "1",
    COMPARISONS: "1",
}
"""Raise an asset's version by hand when its results change for equal inputs; the asset is then computed again."""


def asset_of(stage: str) -> str:
    """Return the name of a stage's asset.

    Args:
        stage: A key of `STAGES`, the name of an asset such as "cem/raw_patches", or the last part of that name.

    Raises:
        DataError: The name is not known; the error lists the known ones.
    """
    for short, asset in STAGES.items():
        if stage in (short, asset, asset.rsplit("/", 1)[-1]):
            return asset
    raise DataError(f"stage {stage!r} is not known; expected one of {', '.join(STAGES)}, or the asset's full name.")
