"""What breaks first as the platform grows, at which number, and what to do then.

Each limit compares a number of the workload with the number at which something gives way. The numbers of the workload come from
`perf.scale_model`; limits come from the code, from measured rates, or from the documentation of Dagster and S3.
"""

from dataclasses import dataclass

from cem_assets.cem.patch_grid import PATCH_SIDE_PX
from cem_assets.cem.patches.dedup import CROSS_DATASET_DISTANCE
from cem_assets.cem.patches.tables import PATCHES_PER_SHARD
from cem_assets.imaging.near_pairs import expected_cost, possible_cuts
from perf.measured_figures import dedup_seconds, figure, number
from perf.scale_objects import PAGE, Bytes, Chain

GIB = 2**30
BRICK_VOXELS = PATCH_SIDE_PX**3
ENTRY_BYTES = Bytes.object_entry
SENSOR_TIMEOUT_SECONDS = 60.0  # Dagster's default for a tick (DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS)
RUN_MEMORY = 16 * GIB  # a run's limit in deploy/kubernetes/values.yaml
SCRATCH = 64 * GIB  # its scratch disk there
NUM_LOOKED_TOGETHER = 64  # datasets whose manifests reconciliation reads together (cem.reconciliation)
NUM_LISTING_THREADS = 16  # store.partition_listing.NUM_THREADS
TICK_SECONDS, TICKS_PER_DAY = 5.0, 1440
NAME_BYTES = 50  # such as dataset-LOC-0_01234_12320-12544_12320-12544
RELEASE_BYTES_PER_PATCH = 3 * 8 + 2 * 4  # hashes as read, spread and sorted; owners and places (cem.releases)
DEDUP_BYTES_PER_PATCH = 50  # cem.patches.stage.choose_exemplars
OBJECT_BYTES = 1500  # of an object in a commit: name, digest and size, in three lists (estimated)
DATABASE_BYTES = 200e9  # from here on a PostgreSQL needs care of its own (a choice)
CURSOR_BYTES = 45  # of a dataset in the inbox sensor's cursor: name and 8 hex digits
GRPC_BYTES = 50e6  # Dagster's default for a message
PARTITIONS = 100_000  # for each asset, recommended by Dagster's documentation


@dataclass(frozen=True)
class Scale:
    """A workload in the numbers that limits are about.

    Attributes:
        chain: One dataset of the mean size.
        num_objects: Objects in the store.
        filtered: Patches in one release.
        num_releases: How many releases are kept.
        database_bytes: Size of Dagster's event log.
        gets, puts: Requests a second while the workload is computed.
        seconds: Duration from the first dataset to the last.
        one_dataset_seconds: Duration of one dataset's chain on the cores of one run.
    """

    num_datasets: float
    chain: Chain
    num_objects: float
    filtered: float
    num_releases: int
    database_bytes: float
    gets: float
    puts: float
    seconds: float
    one_dataset_seconds: float


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        what: The number that is limited, and its unit.
        value: That number at this scale.
        limit: The number at which something gives way.
        at: The limit in datasets, patches, objects or voxels, if everything else stays as here.
        then: What happens there, and the remedy.
        source: How the limit is known: "code", "documented", "extrapolated" or "chosen".
    """

    what: str
    value: float
    limit: float
    at: str
    then: str
    source: str

    @property
    def load(self) -> float:
        """How many times the limit this scale is."""
        return self.value / self.limit


def limits_of(scale: Scale) -> list[Limit]:
    """Return all limits, beginning with the one that breaks first."""
    return sorted([*_of_store(scale), *_of_dataset(scale.chain, scale)], key=lambda limit: -limit.load)


def comparing_hours(num_patches: float) -> float:
    """Return how long near pairs of a release take on two threads, by the cost that the code itself goes by."""
    cuts = possible_cuts(CROSS_DATASET_DISTANCE)

    def cost(num: float) -> float:
        return min(expected_cost(int(num), cut) for cut in cuts)

    return figure("near pairs 10 M") * cost(num_patches) / cost(1e7) / 3600


def _most_compared(hours: float) -> float:
    low, high = 1.0, 1e15
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if comparing_hours(middle) <= hours else (low, middle)
    return low


def _of_store(scale: Scale) -> list[Limit]:
    page = figure("list page")
    listings = scale.num_releases * scale.filtered / PATCHES_PER_SHARD * 2 * ENTRY_BYTES
    a_day_of_ticks = TICK_SECONDS * TICKS_PER_DAY / page * PAGE
    return [
        Limit(
            "comparing the datasets of a release, hours",
            comparing_hours(scale.filtered),
            24.0,
            f"{number(_most_compared(24.0))} patches",
            "every release compares all datasets; compare only what is new with the rest, or use more cores",
            "extrapolated",
        ),
        Limit(
            "memory of a release, GiB",
            scale.filtered * RELEASE_BYTES_PER_PATCH / GIB,
            RUN_MEMORY / GIB,
            f"{number(RUN_MEMORY / RELEASE_BYTES_PER_PATCH)} patches",
            "the process is killed; keep the buckets on a disk, or release parts of the archive",
            "code",
        ),
        Limit(
            "manifests of all releases, GB of JSON",
            listings / 1e9,
            RUN_MEMORY / 10 / 1e9,
            f"{number(RUN_MEMORY / 10 / listings * scale.filtered)} patches in {scale.num_releases} releases",
            "releases, maintenance and checks read them whole; list shards in a Parquet file beside the manifest",
            "code",
        ),
        Limit(
            "a pass of reconciliation, hours",
            scale.num_objects / a_day_of_ticks * 24,
            24.0,
            f"{number(a_day_of_ticks)} objects",
            "missing or stale work is seen after more than a day; look only at what changed since the last pass",
            "extrapolated",
        ),
        Limit(
            "listing the store in maintenance, twice, hours",
            2 * scale.num_objects / PAGE * page / 3600,
            24.0,
            f"{number(86400 / 2 / page * PAGE)} objects",
            "the daily job overlaps the next one; take sizes from the bucket's inventory, list prefixes in several threads",
            "extrapolated",
        ),
        Limit(
            "partitions of an asset",
            scale.num_datasets,
            PARTITIONS,
            f"{number(PARTITIONS)} datasets",
            "the UI's pages of partitions get slow; put more volumes into a dataset, or make assets for each archive",
            "documented",
        ),
        Limit(
            "the inbox sensor's cursor, MB",
            scale.num_datasets * CURSOR_BYTES / 1e6,
            GRPC_BYTES / 1e6,
            f"{number(GRPC_BYTES / CURSOR_BYTES)} datasets",
            "the tick's answer is refused, and long before each tick writes it to the database; keep fingerprints in the store",
            "code",
        ),
        Limit(
            "GET a second",
            scale.gets,
            5500.0,
            "for each prefix",
            "503 for a while, until S3 splits the prefix; requests are retried, and each dataset is a prefix of its own",
            "documented",
        ),
        Limit("PUT a second", scale.puts, 3500.0, "for each prefix", "the same as for GET", "documented"),
        Limit(
            "Dagster's event log, GB",
            scale.database_bytes / 1e9,
            DATABASE_BYTES / 1e9,
            f"{number(DATABASE_BYTES / scale.database_bytes * scale.num_datasets)} runs of the chain",
            "dumps and vacuums take hours; delete old runs (retention covers only ticks), or draw smaller pictures",
            "chosen",
        ),
    ]


def _of_dataset(chain: Chain, scale: Scale) -> list[Limit]:
    page = figure("list page")
    pages = max(1.0, chain.bricks / PAGE)
    together = NUM_LOOKED_TOGETHER * pages * page
    patch_voxels = chain.voxels / chain.raw
    listed = SENSOR_TIMEOUT_SECONDS / page * PAGE * BRICK_VOXELS
    dedup_bytes = DEDUP_BYTES_PER_PATCH + NAME_BYTES * chain.exemplars / chain.raw
    return [
        Limit(
            "one dataset as one file, GiB",
            chain.voxels / GIB,
            SCRATCH / GIB,
            f"{number(SCRATCH)} bytes",
            "on S3 it does not fit on the scratch disk it is copied to; use OME-Zarr, which is read in place, or larger disks",
            "code",
        ),
        Limit(
            f"listing {NUM_LOOKED_TOGETHER} datasets one after another in a tick, s",
            together,
            SENSOR_TIMEOUT_SECONDS,
            f"datasets of {number(listed / NUM_LOOKED_TOGETHER)} voxels",
            "the tick of reconciliation times out before its cursor moves, every time "
            f"({together / NUM_LISTING_THREADS:,.0f} s here where {NUM_LISTING_THREADS} threads list at once); "
            "read manifests without listing bricks, or look at fewer datasets",
            "extrapolated",
        ),
        Limit(
            "listing one dataset in a tick, s",
            pages * page,
            SENSOR_TIMEOUT_SECONDS,
            f"a dataset of {number(listed)} voxels",
            "sensors never get past it; divide it into several datasets, or as above",
            "extrapolated",
        ),
        Limit(
            "memory of a dataset's deduplication, GiB",
            chain.raw * dedup_bytes / GIB,
            RUN_MEMORY / GIB,
            f"a dataset of {number(RUN_MEMORY / dedup_bytes * patch_voxels)} voxels",
            "the process is killed; make datasets of regions of the volume, or use a machine with more memory",
            "extrapolated",
        ),
        Limit(
            "a dataset's deduplication, hours",
            dedup_seconds(chain.raw) / 3600,
            24.0,
            f"a dataset of {number(_raw_in_a_day() * patch_voxels)} voxels",
            "the time grows with exponent 1.6 on one machine; make datasets of regions of the volume",
            "extrapolated",
        ),
        Limit(
            "a dataset's chain on one run, days",
            scale.one_dataset_seconds / 86400,
            7.0,
            f"a dataset of {number(7 * 86400 / scale.one_dataset_seconds * chain.voxels)} voxels",
            "longer than people wait; use the Ray engine for its bricks",
            "extrapolated",
        ),
        Limit(
            "memory of a dataset's commit, GiB",
            chain.bricks * OBJECT_BYTES / GIB,
            RUN_MEMORY / GIB,
            f"a dataset of {number(RUN_MEMORY / OBJECT_BYTES * BRICK_VOXELS)} voxels",
            "commits, checks and manifests list all its bricks; divide it into several datasets",
            "extrapolated",
        ),
    ]


def _raw_in_a_day() -> float:
    low, high = 1e6, 1e15
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if dedup_seconds(middle) < 86400 else (low, middle)
    return low
