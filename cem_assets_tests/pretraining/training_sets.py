"""Small releases to train on: EM patches of three kinds of texture, and classes of fluorescence-like spots."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.patches.tables import FILTERED_SCHEMA
from cem_assets.cem.releases.stage import make_release
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.held_out.stage import fingerprint_test_images
from cem_assets.cytoimagenet.labels.stage import LabelTableParams
from cem_assets.cytoimagenet.releases.stage import make_cyto_release
from cem_assets.store.assets import CODE_VERSIONS, FILTERED
from cem_assets.store.commits import Commit
from cem_assets.store.images import image_column
from cem_assets.store.manifests import Inputs, Manifest
from cem_assets.store.parquet import IMAGE_ROW_GROUP, parquet_bytes
from cem_assets.store.store import Store
from cem_assets_tests.cytoimagenet.example_sources import crop, label, plate, png, take_in

SIDE_PX = 224
PERIODS_PX = {"coarse": 96.0, "fine": 12.0, "middle": 36.0}
SIZES = {"coarse": 96, "fine": 64, "middle": 32}


def textures(period_px: float, num: int, seed: int) -> list[np.ndarray]:
    """Draw pictures of crossed waves of about one period, each different: uint8 (224, 224)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    found = []
    for _ in range(num):
        picture = np.full((SIDE_PX, SIDE_PX), generator.uniform(90, 165))
        for _ in range(2):
            angle, phase = generator.uniform(0, np.pi), generator.uniform(0, 6)
            period = period_px * generator.uniform(0.8, 1.25)
            wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + phase)
            picture += generator.uniform(8, 45) * wave
        found.append(np.clip(picture + generator.normal(0, generator.uniform(2, 20), picture.shape), 0, 255).astype(np.uint8))
    return found


def put_filtered(store: Store, dataset: str, images: list[np.ndarray], prefix: str = "") -> Manifest:
    """Commit a partition of `cem/filtered_patches` from ready patches, as its stage does."""
    names = [
        f"{prefix or dataset}-LOC-2d-0-{image.shape[0]}_{number}-{number + image.shape[1]}"
        for number, image in enumerate(images)
    ]
    num = len(images)
    columns = {
        "dataset": [dataset] * num,
        "name": names,
        "volume": [dataset] * num,
        "axis": [-1] * num,
        "index": [0] * num,
        "y0": [0] * num,
        "y1": [image.shape[0] for image in images],
        "x0": list(range(num)),
        "x1": [number + image.shape[1] for number, image in enumerate(images)],
        "dhash": [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in names],
        "num_duplicates": [0] * num,
        "logit": [3.0] * num,
        "informative": [0.95] * num,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in FILTERED_SCHEMA if field.name != "image"]
    table = pa.table([*arrays, image_column(names, images)], schema=FILTERED_SCHEMA)
    commit = Commit(store, Inputs(FILTERED, dataset, CODE_VERSIONS[FILTERED], {"threshold": 0.5}, {"textures": str(num)}))
    commit.write("part-00000.parquet", parquet_bytes([table], FILTERED_SCHEMA, IMAGE_ROW_GROUP))
    flat = np.concatenate([image.ravel() for image in images]).astype(np.uint64)
    description = DatasetDescription(
        name=dataset, kind="images", pixel_size_nm=(4.0, 4.0), licence="CC0-1.0", citation=f"Textures {dataset}, 2026"
    )
    return commit.finish(
        counts={"patches": num, "dropped": 0, "shards": 1},
        details={
            "description": description.model_dump(mode="json"),
            "lineage": {"raw_patches": num, "deduplicated_patches": num, "filtered_patches": num},
            "volumes_digest": "0" * 64,
            "classifier": {"source": "none", "origin": "none", "sha256": "0" * 64},
            "pixels": {"count": int(flat.size), "total": int(flat.sum()), "squares": int((flat * flat).sum())},
        },
    )


def texture_release(store: Store, sizes: Mapping[str, int] = SIZES, version: str = "") -> Manifest:
    """Make a release of texture patches, one dataset for each period."""
    for number, (dataset, num) in enumerate(sizes.items()):
        put_filtered(store, dataset, textures(PERIODS_PX[dataset], num, number))
    return make_release(store, version).manifest


def class_release(store: Store, num_per_class: int = 40) -> Manifest:
    """Make a release of CytoImageNet whose three compounds look different."""
    wells = {f"{row}01": f"drug {row.lower()}" for row in "ABC"}
    pictures: dict[str, bytes] = {}
    for number, (well, period) in enumerate(zip(wells, PERIODS_PX.values(), strict=True)):
        for site, image in enumerate(textures(period, num_per_class, 50 + number), 1):
            pictures[f"images/{well}_s{site}_w1.png"] = png(image)
    plate(store, "plate", wells, sites=num_per_class, more=pictures, licence="CC0-1.0", citation="Textures, 2026")
    take_in(store, "plate")
    fingerprint_test_images(store)
    label(store, LabelTableParams(min_images=num_per_class, max_images=num_per_class, presample_images=1000))
    crop(store, CropStageParams(min_images=4))
    return make_cyto_release(store).manifest
