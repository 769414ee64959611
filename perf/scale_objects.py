"""How many objects, rows and requests one dataset makes, by arithmetic.

The number of objects is exact; tests compare it with chains that were run. Requests are an estimate from the code of the
stages, for a dataset whose bricks are all in S3. `perf.scale_model` multiplies them by the number of datasets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cem_assets.cem.filter import stage as cem_filter
from cem_assets.cem.patches import pixels as patches
from cem_assets.cem.patches import stage as cem_patches
from cem_assets.cem.volumes import hashes as patch_hashes
from cem_assets.cem.volumes.bricks import brick_boxes, brick_shape, count_brick_patches, count_patches
from cem_assets.execution.checks import HASHED_BYTES
from cem_assets.store import manifests, parquet
from cem_assets.store.assets import DEDUPLICATED, FILTERED, RAW, SCORES, VOLUMES

Shape = tuple[int, int, int]
PAGE = 1000
"""Keys that one LIST answers."""
_HASH_BYTES = 8.0
"""A patch's hash beside its volume; hashes do not compress."""
_LISTED_EXACTLY = 200_000
_BLOCK = 50 << 20
"""Bytes that s3fs requests at a time when it reads or copies a file."""


@dataclass(frozen=True)
class Made:
    """What a stage makes of one dataset.

    Attributes:
        objects: Objects, with the manifest.
        num_bytes: Bytes of these objects.
        read_bytes: Bytes that the stage and its blocking check of objects read.
        gets, puts, lists: Requests.
    """

    objects: int
    num_bytes: float
    read_bytes: float
    gets: float
    puts: float
    lists: float


@dataclass(frozen=True)
class Chain:
    """One dataset of volumes, and how many patches are left after each stage.

    Attributes:
        volumes: Shape (z, y, x) and planes of each volume.
        exemplars, kept: Patches after deduplication and after the filter.
        rejected: Patches that touch voxels which the source lacks.
        rejected_parts: Files of the raw table that had such patches.
        bricks_missing: Bricks that have a mask of missing voxels.
    """

    volumes: Sequence[tuple[Shape, tuple[int, ...]]]
    exemplars: int
    kept: int
    rejected: int = 0
    rejected_parts: int = 0
    bricks_missing: int = 0

    @property
    def voxels(self) -> int:
        return sum(math.prod(shape) for shape, _ in self.volumes)

    @property
    def raw(self) -> int:
        """Patches by arithmetic, before any is rejected for missing voxels."""
        return sum(count_patches(shape, planes) for shape, planes in self.volumes)

    @property
    def bricks(self) -> int:
        return sum(num_bricks(shape, planes) for shape, planes in self.volumes)


def num_bricks(shape: Shape, planes: tuple[int, ...]) -> int:
    """Count the bricks of a volume, of any size."""
    return math.prod(-(-side // step) for side, step in zip(shape, brick_shape(shape, planes), strict=True))


def num_raw_parts(chain: Chain) -> int:
    """Count the files of the raw table: as `plan_raw_parts` does, or for very large datasets by their mean brick."""
    if chain.bricks > _LISTED_EXACTLY:
        per_brick = chain.raw / chain.bricks
        return math.ceil(chain.bricks / math.ceil(patches.ROWS_PER_PART / per_brick))
    parts = held = 0
    is_open = False
    for shape, planes in chain.volumes:
        for box in brick_boxes(shape, planes):
            is_open = True
            held += count_brick_patches(shape, planes, box)
            if held >= patches.ROWS_PER_PART:
                parts, held, is_open = parts + 1, 0, False
    return parts + is_open or 1


def num_hash_parts(chain: Chain) -> int:
    """Count the files of hashes beside the volumes."""
    return sum(-(-count_patches(shape, planes) // patch_hashes.ROWS_PER_PART) for shape, planes in chain.volumes)


def _manifest(num_objects: int) -> int:
    """Count the files of a manifest that lists so many objects."""
    return 1 + (num_objects > manifests.INLINE_OBJECTS)


def count_objects(chain: Chain) -> dict[str, int]:
    """Return the number of objects of each asset of the chain, manifests included."""
    duplicates = chain.raw - chain.rejected - chain.exemplars
    masks = len(chain.volumes) if chain.bricks_missing else 0
    content = {
        # A volume has its bricks, masks where voxels are missing, the zarr.json of group and array, and the hashes of its
        # patches. One more table says what was rejected.
        VOLUMES: chain.bricks + chain.bricks_missing + 2 * len(chain.volumes) + masks + num_hash_parts(chain) + 1,
        RAW: num_raw_parts(chain) + chain.rejected_parts + 1,
        DEDUPLICATED: -(-chain.exemplars // cem_patches._ROWS_PER_PART) + -(-duplicates // cem_patches._ROWS_PER_PART),
        SCORES: -(-chain.exemplars // cem_filter._SCORED_PER_PART),
        FILTERED: max(1, -(-chain.kept // cem_filter.PATCHES_PER_SHARD)) + 1,
    }
    return {asset: number + _manifest(number) for asset, number in content.items()}


@dataclass(frozen=True)
class Bytes:
    """How many bytes each of these things takes in the store; docs/scale.md names the sources.

    Attributes:
        voxel: A voxel of EM after zstd 1.
        raw_row, duplicate_row, score_row: A patch in the tables without pixels.
        patch: A filtered patch with its pixels.
        object_entry: An object in a manifest, as JSON.
    """

    voxel: float = 0.83
    raw_row: float = 10.0
    duplicate_row: float = 8.0
    score_row: float = 24.0
    patch: float = 33_000.0
    object_entry: float = 150.0


def chain_of_cube(num_voxels: float, exemplar_share: float, informative_share: float) -> Chain:
    """Make a dataset of one isotropic cube of about so many voxels."""
    side = round(num_voxels ** (1 / 3))
    shape, planes = (side, side, side), (0, 1, 2)
    exemplars = round(count_patches(shape, planes) * exemplar_share)
    return Chain([(shape, planes)], exemplars, round(exemplars * informative_share))


def stages_of(chain: Chain, sizes: Bytes = Bytes()) -> dict[str, Made]:
    """Return what each stage of a dataset makes and reads, and its requests."""
    objects = count_objects(chain)
    stored = {
        VOLUMES: chain.voxels * sizes.voxel + chain.raw * _HASH_BYTES,
        RAW: chain.raw * sizes.raw_row,
        DEDUPLICATED: chain.exemplars * sizes.raw_row + (chain.raw - chain.exemplars) * sizes.duplicate_row,
        SCORES: chain.exemplars * sizes.score_row,
        FILTERED: chain.kept * sizes.patch,
    }
    inbox = float(chain.voxels)
    in_order = 64 * cem_filter._READ_BATCHES  # rows that are read together; a brick between two batches is read for both
    scored_bricks = min(chain.bricks, chain.exemplars) + chain.exemplars / in_order
    kept_bricks = min(chain.bricks, chain.kept) + chain.kept / parquet.IMAGE_ROW_GROUP
    brick = chain.voxels * sizes.voxel / max(chain.bricks, 1)
    before = {
        VOLUMES: (2 * inbox, 2.0 * max(1, inbox / _BLOCK)),  # hashed, then copied to scratch
        RAW: (chain.raw * _HASH_BYTES, num_hash_parts(chain)),  # bricks are read only where another Pillow hashed them
        DEDUPLICATED: (3 * stored[RAW], 6.0 * objects[RAW]),  # hashes, then names, then everything, and names again
        SCORES: (scored_bricks * brick + stored[DEDUPLICATED], scored_bricks + 2.0 * objects[DEDUPLICATED]),
        FILTERED: (kept_bricks * brick + 3 * stored[SCORES], kept_bricks + 6.0 * objects[SCORES]),
    }
    made = {}
    for asset, (num_bytes, gets) in before.items():
        checked = min(stored[asset], HASHED_BYTES)
        share = checked / max(stored[asset], 1.0)
        pages = math.ceil(objects[asset] / PAGE)
        made[asset] = Made(
            objects=objects[asset],
            num_bytes=stored[asset],
            read_bytes=num_bytes + checked,
            gets=gets + share * objects[asset] + 6,
            puts=float(objects[asset]),
            lists=2.0 * pages + 8,  # before and after the stage, for its check, and to find manifests
        )
    return made
