"""The training reader: the right patches in the right order, a bounded cache that repairs itself, clear errors."""

import errno
import fcntl
import io
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cem_assets import readers
from cem_assets.cem.patches.tables import FILTERED_SCHEMA, patch_table
from cem_assets.cem.releases.stage import make_release
from cem_assets.cem.volumes.bricks import PatchRows
from cem_assets.pixels import cache as pixel_cache
from cem_assets.pixels import shards as training_shards
from cem_assets.pixels.cache import PATCH_BYTES, DiskCache, MemoryCache, Wanted
from cem_assets.pixels.image_cells import decode_cells
from cem_assets.pixels.reader import BatchStream, TrainingSource
from cem_assets.pretraining.data.epochs import epoch_order, share, streaming_order
from cem_assets.store.images import image_column
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.store import Store
from cem_assets_tests.services.faulty import faulty_proxy

GROUP = 16
GROUP_BYTES = GROUP * (PATCH_BYTES + 4) + pixel_cache.HEADER_BYTES


def patches(num: int, seed: int) -> list[np.ndarray]:
    """Make patches whose first two pixels tell them apart."""
    generator = np.random.default_rng(seed)
    out = list(generator.integers(0, 256, (num, 224, 224), dtype=np.uint8))
    for n, patch in enumerate(out):
        patch[0, :2] = seed, n
    return out


def shard_bytes(dataset: str, images: list[np.ndarray], row_group: int = GROUP) -> bytes:
    """Write a file like those of cem/filtered_patches."""
    num = len(images)
    place = np.tile(np.array([0, 0, 0, 224, 0, 224], np.int32), (num, 1))
    place[:, 1] = np.arange(num)
    table = patch_table(
        dataset, "v", (num, 224, 224), PatchRows(place, np.arange(num, dtype=np.uint64), np.zeros(num, np.int32))
    )
    for name, kind in (("num_duplicates", pa.int64()), ("logit", pa.float32()), ("informative", pa.float32())):
        table = table.append_column(name, pa.array([1] * num, kind))
    names = [str(n) for n in range(num)]
    table = table.replace_schema_metadata(None).append_column("image", image_column(names, images))
    return parquet_bytes([table], FILTERED_SCHEMA, row_group)


SIZES = {"a": (40, 7), "b": (20,), "c": (33,)}
"""Patches in each shard of each dataset: row groups of 16, with short ones at the end."""


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, bytes], np.ndarray, list[str]]:
    files, pixels, labels = {}, [], []
    for dataset, sizes in SIZES.items():
        for part, size in enumerate(sizes):
            images = patches(size, len(files))
            files[f"{dataset}/part-{part:05d}.parquet"] = shard_bytes(dataset, images)
            pixels += images
            labels += [dataset] * size
    return files, np.stack(pixels), labels


def put(store: Store, made) -> list[str]:
    for key, data in made[0].items():
        store.put(key, data)
    return list(made[0])


@pytest.fixture
def keys(local_store, made) -> list[str]:
    return put(local_store, made)


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path) -> Path | None:
    return tmp_path / "cache" if request.param == "disk" else None


# What is read


@pytest.mark.parametrize("cache_bytes", [1 << 30, 3 * GROUP_BYTES, 1])
def test_any_rows_in_any_order_have_their_pixels_and_labels(local_store, keys, made, cache, cache_bytes):
    source = TrainingSource.open(local_store, keys, cache, cache_bytes)
    assert source.num_rows == 100 and source.classes == ("a", "b", "c") and source.class_sizes() == [47, 20, 33]
    generator = np.random.default_rng(0)
    for _ in range(4):
        rows = generator.integers(0, 100, 50)
        images, labels = source.read_rows(rows)
        assert np.array_equal(images, made[1][rows])
        assert [source.classes[label] for label in labels] == [made[2][row] for row in rows]
    nothing, none = source.read_rows(np.empty(0, np.int64))
    assert nothing.shape == (0, 224, 224) and none.shape == (0,)


@pytest.mark.parametrize("rows", [[-1, 3], [100], [5, 2**40]])
def test_rows_that_are_not_there_are_refused(local_store, keys, rows):
    with pytest.raises(IndexError, match=r"expected 0\.\.99"):
        TrainingSource.open(local_store, keys).read_rows(np.array(rows))


def test_a_release_is_read_as_the_readers_read_it(curated_store, tmp_path):
    """Read shards that real stages wrote, on a local folder and on the real S3 server."""
    make_release(curated_store, "v1")
    release = readers.read_release("v1", curated_store.url)
    keys = [url.removeprefix(f"{curated_store.url}/") for url in release.shards]
    source = TrainingSource.open(curated_store, keys, tmp_path / "cache", 1 << 30)
    assert source.num_rows == release.num_patches and list(source.classes) == release.datasets["dataset"].tolist()
    assert source.class_sizes() == release.datasets["num_patches"].tolist()
    progress: list[tuple[int, int]] = []
    source.fill_cache(2, lambda done, num: progress.append((done, num)))
    assert progress[-1][0] == progress[-1][1] == len(progress)
    whole = 0
    images, _ = source.read_rows(np.arange(source.num_rows))
    for found, (_, expected) in zip(images, release.iter_images(), strict=True):
        height, width = expected.shape
        top, left = (224 - height) // 2, (224 - width) // 2
        assert np.array_equal(found[top : top + height, left : left + width], expected)
        whole += expected.shape == (224, 224)
    assert 0 < whole < source.num_rows


def test_small_patches_are_mirrored_or_stretched():
    sizes = [(224, 224), (100, 224), (224, 65), (130, 90), (90, 130), (224, 224), (64, 64)]
    images = [np.random.default_rng(n).integers(0, 256, size, dtype=np.uint8) for n, size in enumerate(sizes)]
    column = image_column([str(n) for n in range(len(images))], images)
    mirrored, stretched = decode_cells(column, "mirror"), decode_cells(column, "stretch")
    for image, by_mirror, by_stretch in zip(images, mirrored, stretched, strict=True):
        before = [(224 - side) // 2 for side in image.shape]
        after = [224 - side - lead for side, lead in zip(image.shape, before, strict=True)]
        assert np.array_equal(by_mirror, np.pad(image, list(zip(before, after, strict=True)), mode="symmetric"))
        theirs = Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)
        assert np.array_equal(by_stretch, np.asarray(theirs))


def test_larger_images_are_stretched_or_refused():
    column = image_column(["x"], [np.random.default_rng(0).integers(0, 256, (300, 500), dtype=np.uint8)])
    assert decode_cells(column, "stretch").shape == (1, 224, 224)
    with pytest.raises(ValueError, match='300 x 500.*fit "stretch"'):
        decode_cells(column, "mirror")


def encoded(image: np.ndarray, kind: str, **options) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
def test_cells_of_other_writers_are_read_too(binary):
    images = patches(6, 1)
    cells = [encoded(images[0], "PNG"), encoded(images[1], "TIFF"), encoded(images[2], "TIFF", compression="tiff_deflate"),
             image_column(["x"], [images[3]])[0]["bytes"].as_py(), encoded(images[4], "TIFF"),
             image_column(["x"], [images[5]])[0]["bytes"].as_py()]  # fmt: skip
    column = pa.chunked_array([pa.array([b"not read", *cells[:3]], binary).slice(1), pa.array(cells[3:], binary)])
    assert np.array_equal(decode_cells(column, "mirror"), np.stack(images))
    whole = image_column([str(n) for n in range(6)], images)
    assert np.shares_memory(decode_cells(whole, "mirror"), np.frombuffer(whole.field("bytes").buffers()[2], np.uint8))
    forged = bytearray(cells[3])
    forged[20] ^= 255  # as long as a whole patch, but not one
    with pytest.raises(ValueError, match="row 1"):
        decode_cells(pa.array([cells[5], bytes(forged)], binary), "mirror")
    structs = image_column([str(n) for n in range(6)], images)
    for sliced in (pa.array(cells, binary).slice(2, 3), structs.slice(2, 3)):
        assert np.array_equal(decode_cells(sliced, "mirror"), np.stack(images[2:5]))


def huge_png() -> bytes:
    """Make a PNG of a few hundred bytes whose header claims 2**28 pixels."""
    data = bytearray(encoded(np.zeros((4, 4), np.uint8), "PNG"))
    data[16:24] = (1 << 14).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("cell", "told"),
    [(b"", "row 1"), (b"no image", "row 1"), (huge_png(), "row 1"), (None, "row 1 has no bytes")],
)
def test_a_cell_that_is_no_image_is_named(cell, told):
    good = encoded(patches(1, 1)[0], "PNG")
    with pytest.raises(ValueError, match=told):
        decode_cells(pa.array([good, cell, good], pa.binary()), "mirror")


NUMBERS = pa.array([3, 1, 3] * 3, pa.int8())
WORDS = pa.array(["z", "k", "z"] * 3)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (NUMBERS, ("1", "3")),
        (WORDS, ("k", "z")),
        (WORDS.cast(pa.large_string()), ("k", "z")),
        (WORDS.dictionary_encode(), ("k", "z")),
    ],
)
def test_classes_may_be_mixed_and_of_several_kinds(local_store, values, classes):
    table = pa.table({"image": pa.array([encoded(image, "PNG") for image in patches(9, 2)]), "label": values})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=4)
    local_store.put("x.parquet", sink.getvalue())
    source = TrainingSource.open(local_store, ["x.parquet"], label_column="label")
    assert source.classes == classes and source.labels.tolist() == [1, 0, 1] * 3
    with pytest.raises(ValueError, match="are mixed"):
        source.class_sizes()


# Batches


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_an_epoch_over_ranks_and_workers_is_the_draw(local_store, keys, made, tmp_path, gamma):
    source = TrainingSource.open(local_store, keys, tmp_path / "cache", 4 * GROUP_BYTES)
    order = epoch_order(source.class_sizes(), gamma, 3, 1)
    got = []
    for rank in range(2):
        for worker in range(2):
            batches = share(order, rank, 2, worker, 2, batch_size=14, remainder="keep")
            for batch in BatchStream(source, batches, num_threads=3):
                assert np.array_equal(batch.images, made[1][batch.rows])
                got += batch.rows.tolist()
    assert sorted(got) == sorted(order.tolist())


def test_a_resumed_epoch_delivers_exactly_the_rest(local_store, keys, cache):
    source = TrainingSource.open(local_store, keys, cache)
    order = streaming_order(epoch_order(source.class_sizes(), 0, 0, 0), source.group_starts, 3, 0, 0)
    whole = list(BatchStream(source, share(order, batch_size=8)))
    taken = BatchStream(source, share(order, batch_size=8)).__iter__()
    done = [next(taken) for _ in range(5)]
    taken.close()
    again = TrainingSource.open(local_store, keys, cache)
    rest = list(BatchStream(again, share(order, batch_size=8, start=5), start=5))
    assert [batch.number for batch in done + rest] == list(range(12))
    for one, other in zip(whole, done + rest, strict=True):
        assert np.array_equal(one.rows, other.rows) and np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize(("num_threads", "num_ahead"), [(1, 1), (2, 8), (8, 3), (5, 50)])
def test_batches_do_not_depend_on_threads(local_store, keys, made, cache, num_threads, num_ahead):
    source = TrainingSource.open(local_store, keys, cache, 3 * GROUP_BYTES)
    batches = share(epoch_order((100,), 0, 1, 0), batch_size=9)
    stream = BatchStream(source, batches, num_threads=num_threads, num_ahead=num_ahead)
    assert len(stream) == 11
    for _ in range(2):  # the same stream may be read again
        found = list(stream)
        assert [batch.rows.tolist() for batch in found] == [rows.tolist() for rows in batches]
        assert all(np.array_equal(batch.images, made[1][batch.rows]) for batch in found)


class Watched:
    """Counts the batches in memory, which are being read or wait to be taken."""

    def __init__(self, source: TrainingSource, monkeypatch) -> None:
        self.num_begun = 0
        fill = TrainingSource._fill

        def watched(this, rows, out, is_cancelled) -> None:
            self.num_begun += 1
            fill(this, rows, out, is_cancelled)

        monkeypatch.setattr(TrainingSource, "_fill", watched)


def test_no_more_batches_are_held_than_asked_for(local_store, keys, monkeypatch):
    source = TrainingSource.open(local_store, keys)
    watched = Watched(source, monkeypatch)
    stream = iter(BatchStream(source, share(np.arange(100), batch_size=2), num_threads=4, num_ahead=3))
    for taken in range(1, 20):
        next(stream)
        assert watched.num_begun <= taken + 3
    stream.close()
    assert watched.num_begun <= 22


def test_leaving_early_stops_the_threads(local_store, keys):
    source = TrainingSource.open(local_store, keys)
    before = set(threading.enumerate())
    for _ in BatchStream(source, share(np.arange(100), batch_size=4), num_threads=4):
        assert len(set(threading.enumerate()) - before) > 0
        break
    stream = iter(BatchStream(source, share(np.arange(100), batch_size=4)))
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= before


def test_leaving_early_waits_for_one_row_group_and_not_for_a_batch(local_store, keys, monkeypatch):
    source = TrainingSource.open(local_store, keys)
    decode, decoded = TrainingSource._decode, []

    def slowly(*args) -> np.ndarray:
        decoded.append(args)
        time.sleep(0.05)
        return decode(*args)

    monkeypatch.setattr(TrainingSource, "_decode", slowly)
    stream = iter(BatchStream(source, [np.array([0]), np.arange(100)], num_threads=1))
    next(stream)
    stream.close()
    assert len(decoded) < 5  # of nine


def test_an_error_comes_where_its_batch_would(local_store, keys):
    source = TrainingSource.open(local_store, keys)
    stream = iter(BatchStream(source, [np.array([1]), np.array([2]), np.array([500]), np.array([3])], num_threads=3))
    assert [next(stream).number, next(stream).number] == [0, 1]
    with pytest.raises(IndexError):
        next(stream)


def test_memory_is_bounded_by_the_batches_held(local_store, tmp_path):
    """Read 3,000 patches (150 MB) through a cache of 10 MB with four threads, in a process of its own."""
    for part in range(4):
        local_store.put(f"{part}.parquet", shard_bytes("d", patches(250, part) * 3, 64))
    code = f"""
import numpy as np
from pathlib import Path
from cem_assets.pretraining.data.epochs import epoch_order, share, streaming_order
from cem_assets.store.store import open_store
from cem_assets.pixels.reader import BatchStream, TrainingSource
def measure(cache):
    source = TrainingSource.open(open_store({local_store.url!r}), [f"{{n}}.parquet" for n in range(4)], cache, 10 * 10**6)
    order = streaming_order(epoch_order((source.num_rows,), 0, 0, 0), source.group_starts, 2, 0, 0)
    return sum(len(b.rows) for b in BatchStream(source, share(order, batch_size=50), num_threads=4, num_ahead=6))
source = TrainingSource.open(open_store({local_store.url!r}), ["0.parquet"], None, 1)
source.read_rows(np.array([1]))
peak = lambda: int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])
before = peak()
assert measure(Path({str(tmp_path / "cache")!r})) == 3000
assert measure(None) == 3000
print(peak() - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert found.returncode == 0, found.stderr
    group, batch = 64 * PATCH_BYTES, 50 * PATCH_BYTES
    assert int(found.stdout) * 1024 < 10e6 + 4 * 4 * group + 8 * batch + 30e6 < 120e6


# The cache


def cached_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pixels"))


def test_the_cache_is_filled_once_and_used_by_the_next_process(local_store, keys, made, tmp_path, monkeypatch):
    TrainingSource.open(local_store, keys, tmp_path / "cache").fill_cache()
    assert len(cached_files(tmp_path / "cache")) == 9
    again = TrainingSource.open(local_store, keys, tmp_path / "cache")
    monkeypatch.setattr(TrainingSource, "_decode", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(again.read_rows(np.arange(100))[0], made[1])


def test_the_cache_keeps_its_bound(local_store, keys, made, tmp_path):
    folder, bound = tmp_path / "cache", 4 * GROUP_BYTES
    folder.mkdir()
    (folder / "notes.txt").write_text("not ours")
    (folder / "0000.pixels").write_bytes(bytes(10**6))
    source = TrainingSource.open(local_store, keys, folder, bound)
    generator = np.random.default_rng(0)
    for _ in range(30):
        rows = generator.integers(0, 100, 5)
        assert np.array_equal(source.read_rows(rows)[0], made[1][rows])
        source.flush()  # the background writer deletes files, too
        ours = [path for path in folder.iterdir() if path.name not in ("notes.txt", "0000.pixels")]
        assert sum(path.stat().st_size for path in ours) <= bound
    assert {"notes.txt", "0000.pixels"} <= {path.name for path in folder.iterdir()}


def test_what_was_used_last_stays_in_the_cache(local_store, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_cache, "_TOUCH_SECONDS", 0.0)
    source = TrainingSource.open(local_store, keys, tmp_path / "cache", 3 * GROUP_BYTES)
    for row in (0, 16, 0, 47, 0, 67, 0, 83, 0):  # the first group several times, four others once
        source.read_rows(np.array([row]))
        source.flush()
        time.sleep(0.02)  # times of files have a coarse resolution
    decoded: list[int] = []
    monkeypatch.setattr(
        TrainingSource, "_decode", lambda _, number, group, num: decoded.append(number) or np.zeros((num, 224, 224), "u1")
    )
    source.read_rows(np.array([0, 67, 83]))
    assert not decoded
    source.read_rows(np.array([16]))
    assert decoded == [0]


def test_a_cache_that_is_too_small_is_said_once_and_not_written(local_store, keys, made, tmp_path, caplog):
    source = TrainingSource.open(local_store, keys, tmp_path / "cache", 1000)
    for _ in range(2):
        assert np.array_equal(source.read_rows(np.arange(100))[0], made[1])
    assert not cached_files(tmp_path / "cache")
    assert len([record for record in caplog.records if "does not fit" in record.message]) == 1
    with pytest.raises(ValueError, match="Raise cache_bytes"):
        source.fill_cache()


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    first = len(data) - PATCH_BYTES * ((len(data) - 32) // (PATCH_BYTES + 4))
    match kind:
        case "cut":
            data = data[: len(data) // 2]
        case "empty":
            data = bytearray()
        case "pixel":
            data[first + 5 * PATCH_BYTES + 1000] ^= 1
        case "zeros":  # what a file system may leave after a power cut
            data[first:] = bytes(len(data) - first)
        case "header":
            data[0] ^= 1
        case "table":
            data[40] ^= 1
        case "other":  # of another group
            data = bytearray(next(p for p in cached_files(path.parent) if p.stat().st_size != len(data)).read_bytes())
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["cut", "empty", "pixel", "zeros", "header", "table", "other"])
@pytest.mark.parametrize("is_open", [False, True], ids=["new process", "same process"])
def test_damaged_files_are_made_again(local_store, keys, made, tmp_path, caplog, kind, is_open):
    source = TrainingSource.open(local_store, keys, tmp_path / "cache")
    for _ in range(2):
        source.read_rows(np.arange(100))
        source.flush()
    whole = [path.read_bytes() for path in cached_files(tmp_path / "cache")]
    damage(next(path for path in cached_files(tmp_path / "cache") if path.stat().st_size == GROUP_BYTES), kind)
    if not is_open:
        source = TrainingSource.open(local_store, keys, tmp_path / "cache")
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert np.array_equal(source.read_rows(np.arange(100))[0], made[1])
        source.flush()
    is_noticed = not (is_open and kind in ("header", "table"))  # its checksums were read before
    assert caplog.text.count("is damaged") == is_noticed
    if is_noticed:
        assert [path.read_bytes() for path in cached_files(tmp_path / "cache")] == whole


def test_a_shard_that_was_written_again_is_cached_again(local_store, keys, made, tmp_path):
    TrainingSource.open(local_store, keys, tmp_path / "cache").fill_cache()
    other = patches(20, 99)
    local_store.put("b/part-00000.parquet", shard_bytes("b", other))
    source = TrainingSource.open(local_store, keys, tmp_path / "cache")
    assert np.array_equal(source.read_rows(np.arange(47, 67))[0], np.stack(other))


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(local_store, keys, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    dead, alive = (folder / f"{'0' * 40}.{uuid.uuid4().hex}.part" for _ in range(2))
    dead.write_bytes(bytes(10))
    with open(alive, "wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        source = TrainingSource.open(local_store, keys, folder)
        source.read_rows(np.array([0]))
        source.flush()
        assert alive.exists() and not dead.exists() and len(cached_files(folder)) == 1


def test_a_full_disk_stops_the_cache_but_not_the_reading(local_store, keys, made, tmp_path, monkeypatch, caplog):
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "truncate", full)
    source = TrainingSource.open(local_store, keys, tmp_path / "cache")
    for _ in range(2):
        assert np.array_equal(source.read_rows(np.arange(100))[0], made[1])
        source.flush()
    assert caplog.text.count("cannot be written") == 1
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix in (".pixels", ".part")]


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_group_is_built_once_however_many_ask(tmp_path, kind):
    cache = MemoryCache(10**9) if kind == "memory" else DiskCache(tmp_path, 10**9)
    pixels = np.stack(patches(GROUP, 0))
    built, together = [], threading.Barrier(8)

    def build() -> np.ndarray:
        built.append(1)
        threading.Event().wait(0.05)
        return pixels

    def ask() -> None:
        out = np.empty((2, 224, 224), np.uint8)
        together.wait()
        cache.read(Wanted("ab" * 20, GROUP, np.array([3, 1]), np.array([1, 0])), out, build)
        assert np.array_equal(out, pixels[[1, 3]])
        good.append(1)

    good: list[int] = []
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and len(good) == 8


KILLED = """
import os, sys
import numpy as np
from pathlib import Path
from cem_assets.pixels import cache as pixel_cache
from cem_assets.store.store import open_store
from cem_assets.pixels.reader import TrainingSource
url, folder, keys = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
written, write = [], pixel_cache._write_patches
def killed(descriptor, pixels):
    if len(written) == 3:
        os.write(descriptor, pixels[0].data)
        os.kill(os.getpid(), 9)
    written.append(write(descriptor, pixels))
pixel_cache._write_patches = killed
source = TrainingSource.open(open_store(url), keys, folder)
source.read_rows(np.arange(100))
source.flush()
"""


def test_a_process_killed_while_its_cache_is_written_behind_it_leaves_whole_files(local_store, keys, made, tmp_path):
    folder = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, local_store.url, str(folder), *keys]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == -9
    assert len(cached_files(folder)) == 3 and len(list(folder.glob("*.part"))) == 1
    source = TrainingSource.open(local_store, keys, folder)
    assert np.array_equal(source.read_rows(np.arange(100))[0], made[1])
    source.flush()
    assert len(cached_files(folder)) == 9 and not list(folder.glob("*.part"))


def test_what_waits_to_be_written_is_read_from_memory_and_decoded_once(local_store, keys, made, tmp_path, monkeypatch):
    may_write, decode, decoded = threading.Event(), TrainingSource._decode, []
    write = pixel_cache._write_patches

    def waits(descriptor, pixels) -> None:
        may_write.wait(60)
        write(descriptor, pixels)

    monkeypatch.setattr(pixel_cache, "_write_patches", waits)
    monkeypatch.setattr(TrainingSource, "_decode", lambda *a: decoded.append(a[1:3]) or decode(*a))
    source = TrainingSource.open(local_store, keys, tmp_path / "cache")
    for _ in range(3):
        assert np.array_equal(source.read_rows(np.arange(100))[0], made[1])
    assert not cached_files(tmp_path / "cache") and len(decoded) == len(set(decoded)) == 9
    may_write.set()
    source.flush()
    assert len(cached_files(tmp_path / "cache")) == 9


def test_a_second_user_of_the_folder_finds_what_the_first_has_decoded(local_store, keys, made, tmp_path, monkeypatch):
    first, second = (TrainingSource.open(local_store, keys, tmp_path / "cache") for _ in range(2))
    first.read_rows(np.arange(100))  # without waiting until it is written
    monkeypatch.setattr(TrainingSource, "_decode", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(second.read_rows(np.arange(100))[0], made[1])


def test_a_batch_takes_other_groups_while_one_is_being_decoded(local_store, keys, made, cache, monkeypatch):
    """Two batches need the same groups in the same order; if threads waited for each other, one would decode everything."""
    source = TrainingSource.open(local_store, keys, cache)
    decode, by_thread, together = TrainingSource._decode, {}, threading.Barrier(2)

    def watched(*args) -> np.ndarray:
        by_thread.setdefault(threading.get_ident(), []).append(args[1:3])
        if len(by_thread[threading.get_ident()]) <= 3:
            together.wait(60)  # passed only if both decode, each a different group
        return decode(*args)

    monkeypatch.setattr(TrainingSource, "_decode", watched)
    for batch in BatchStream(source, [np.arange(100), np.arange(100)], num_threads=2):
        assert np.array_equal(batch.images, made[1])
    done = [group for groups in by_thread.values() for group in groups]
    assert len(by_thread) == 2 and len(done) == len(set(done)) == 9


def test_processes_share_a_folder(local_store, keys, tmp_path):
    """Four processes share a cache with room for three groups: all read the same pixels, and the bound holds in the end."""
    code = f"""
import hashlib, numpy as np
from pathlib import Path
from cem_assets.store.store import open_store
from cem_assets.pixels.reader import TrainingSource
source = TrainingSource.open(open_store({local_store.url!r}), {keys!r}, Path({str(tmp_path / "cache")!r}), {3 * GROUP_BYTES})
digest = hashlib.sha256()
for _ in range(3):
    digest.update(source.read_rows(np.arange(100))[0])
print(digest.hexdigest())
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        for _ in range(3)
    ]
    digests = {process.communicate(timeout=120)[0] for process in running}
    assert len(digests) == 1 and [process.returncode for process in running] == [0, 0, 0]
    assert sum(path.stat().st_size for path in cached_files(tmp_path / "cache")) <= 3 * GROUP_BYTES


# Trouble with shards


def test_missing_shards_are_all_named(local_store, keys):
    with pytest.raises(FileNotFoundError, match="2 of 6 shards are missing.*x.parquet; y.parquet"):
        TrainingSource.open(local_store, ["x.parquet", *keys, "y.parquet"])


def test_a_shard_that_vanishes_later_is_named(store, made):
    keys = put(store, made)
    source = TrainingSource.open(store, keys)
    source.read_rows(np.array([99]))
    store.delete([keys[2]])
    assert np.array_equal(source.read_rows(np.array([0]))[0][0], made[1][0])
    with pytest.raises(FileNotFoundError, match=r"b/part-00000.parquet has vanished"):
        source.read_rows(np.array([50]))


def test_every_shard_that_cannot_be_trained_on_is_named(local_store, keys):
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [1, 2], "dataset": ["a", "a"]}), sink)
    local_store.put("numbers.parquet", sink.getvalue())
    sink = io.BytesIO()
    pq.write_table(pa.table({"picture": [b""], "dataset": [None]}), sink)
    local_store.put("other.parquet", sink.getvalue())
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [b"", b""], "dataset": pa.array(["a", None])}), sink)
    local_store.put("nameless.parquet", sink.getvalue())
    local_store.put("text.parquet", b"no parquet at all")
    local_store.put("cut.parquet", local_store.read(keys[0])[:-100])
    bad = ["numbers.parquet", "other.parquet", "nameless.parquet", "text.parquet", "cut.parquet"]
    with pytest.raises(ValueError) as error:
        TrainingSource.open(local_store, [*keys, *bad])
    text = str(error.value)
    assert "numbers.parquet has an image column of int64" in text and "other.parquet has no column image" in text
    assert "nameless.parquet has 1 rows without a dataset" in text
    assert "text.parquet is no Parquet file" in text and "cut.parquet is no Parquet file" in text
    assert not any(key in text for key in keys)


def test_shards_without_rows_are_no_release(local_store, keys):
    local_store.put("empty.parquet", shard_bytes("a", []))
    assert TrainingSource.open(local_store, ["empty.parquet", *keys]).num_rows == 100
    with pytest.raises(ValueError, match="hold no rows"):
        TrainingSource.open(local_store, ["empty.parquet"])
    with pytest.raises(ValueError, match="hold no rows"):
        TrainingSource.open(local_store, [])


def test_row_groups_that_no_memory_holds_are_refused(local_store, keys, monkeypatch):
    monkeypatch.setattr(training_shards, "MAX_GROUP_BYTES", 10 * PATCH_BYTES)
    with pytest.raises(ValueError, match="row group 0 of a/part-00000.parquet takes"):
        TrainingSource.open(local_store, keys)


@pytest.mark.parametrize("how", ["longer", "pages"])
def test_a_shard_that_is_damaged_later_is_named(local_store, keys, how):
    source = TrainingSource.open(local_store, keys)
    data = bytearray(local_store.read(keys[1]))
    if how == "longer":
        data += b"x"
    else:
        page = source._shards[1].metadata.row_group(0).column(13).data_page_offset
        data[page : page + 60] = bytes(60)
    Path(local_store.url_of(keys[1])).write_bytes(data)
    with pytest.raises(ValueError, match=r"row group 0 of shard .*a/part-00001.parquet cannot be read.*restore it"):
        source.read_rows(np.array([42]))


def test_lost_connections_are_the_stores_to_retry(s3, s3_store, made, monkeypatch, tmp_path):
    """One request in ten fails with status 503 or a closed connection."""
    keys = put(s3_store, made)
    with faulty_proxy(s3.endpoint, 0.1, 3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        code = f"""
import numpy as np
from pathlib import Path
from cem_assets.pretraining.data.epochs import share
from cem_assets.store.store import open_store
from cem_assets.pixels.reader import BatchStream, TrainingSource
out = []
for _ in range(3):
    source = TrainingSource.open(open_store({s3_store.url!r}), {keys!r})
    out = [batch.images for batch in BatchStream(source, share(np.arange(100), batch_size=20), num_threads=4)]
np.save({str(tmp_path / "out.npy")!r}, np.concatenate(out))
"""
        # In a process of its own, because the file system of this one uses the real endpoint.
        found = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
        assert found.returncode == 0, found.stderr[-3000:]
        assert proxy.num_faults > 3
    assert np.array_equal(np.load(tmp_path / "out.npy"), made[1])


def test_reading_fetches_little_more_than_it_needs(s3_store, made, monkeypatch):
    """s3fs would read 50 MB more for every row group."""
    keys = put(s3_store, made)
    source = TrainingSource.open(s3_store, keys, None, 1)
    fetched: list[int] = []
    read_range = Store.read_range

    def counted(self, key, start, num_bytes):
        data, found = read_range(self, key, start, num_bytes)
        fetched.append(len(data))
        return data, found

    monkeypatch.setattr(Store, "read_range", counted)
    source.read_rows(np.array([0]))
    assert 0 < sum(fetched) < 1.2 * GROUP * PATCH_BYTES
