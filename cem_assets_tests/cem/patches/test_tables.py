"""HF datasets, pandas and DuckDB read the tables without this package."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cem_assets.cem.patches.tables import FILTERED_SCHEMA, RAW_SCHEMA, patch_table, places_of
from cem_assets.cem.volumes.bricks import PatchRows
from cem_assets.store.images import decode_image, encode_tiff, image_column
from cem_assets.store.parquet import parquet_bytes, rechunk


def rows(num: int, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    place = np.stack([np.zeros(num), np.arange(num), *[np.full(num, v) for v in (0, 224, 0, 224)]], axis=1).astype(np.int32)
    hashes = generator.integers(0, 2**64, num, dtype=np.uint64)
    return patch_table("d", "v", (num, 224, 224), PatchRows(place, hashes, np.zeros(num, np.int32)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 224), st.integers(1, 224), st.integers(0, 1000))
def test_tiff_bytes_are_read_by_tifffile_and_pillow(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    data = encode_tiff(pixels)
    assert np.array_equal(tifffile.imread(io.BytesIO(data)), pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    assert np.array_equal(decode_image(data), pixels)


def test_places_and_names_survive_the_table():
    table = rows(30)
    assert places_of(table)[7].tolist() == [0, 7, 0, 224, 0, 224]
    assert table["name"][7].as_py() == "v-LOC-0_07_0-224_0-224"
    assert table.schema.equals(RAW_SCHEMA)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=12), st.integers(1, 15))
def test_rechunking_keeps_rows_and_order(lengths, size):
    tables = [pa.table({"n": list(range(100 * k, 100 * k + length))}) for k, length in enumerate(lengths)]
    out = list(rechunk(tables, size))
    assert [len(t) for t in out[:-1]] == [size] * (len(out) - 1)
    assert [n for t in out for n in t["n"].to_pylist()] == [n for t in tables for n in t["n"].to_pylist()]


def test_equal_rows_give_equal_bytes_whatever_the_pieces():
    table = rows(1000)
    whole = parquet_bytes([table], RAW_SCHEMA, 128)
    pieces = parquet_bytes([table.slice(n, 77) for n in range(0, 1000, 77)], RAW_SCHEMA, 128)
    assert whole == pieces
    assert pq.ParquetFile(io.BytesIO(whole)).metadata.num_row_groups == 8


def test_an_empty_table_keeps_its_columns():
    assert pq.read_table(io.BytesIO(parquet_bytes([], FILTERED_SCHEMA))).schema.names == FILTERED_SCHEMA.names


@pytest.fixture
def shard(tmp_path):
    """A file with pixels, as `cem/filtered_patches` writes it."""
    table = rows(20)
    images = [np.full((224, 100 + n), n, np.uint8) for n in range(20)]
    for name, kind, value in (
        ("num_duplicates", pa.int64(), 3),
        ("logit", pa.float32(), 1.5),
        ("informative", pa.float32(), 0.8),
    ):
        table = table.append_column(name, pa.array([value] * 20, kind))
    table = table.replace_schema_metadata(None).append_column("image", image_column(table["name"].to_pylist(), images))
    path = tmp_path / "content" / "part-00000.parquet"
    path.parent.mkdir()
    path.write_bytes(parquet_bytes([table], FILTERED_SCHEMA, 8))
    (path.parent / "_dropped").mkdir()
    (path.parent / "_dropped" / "part-00000.parquet").write_bytes(parquet_bytes([rows(3)], RAW_SCHEMA))
    return path


def test_hf_datasets_reads_images(shard, tmp_path):
    import datasets

    loaded = datasets.load_dataset(
        "parquet", data_files=f"{shard.parent}/*.parquet", split="train", cache_dir=str(tmp_path / "hf")
    )
    assert isinstance(loaded.features["image"], datasets.Image) and loaded.features["dhash"].dtype == "uint64"
    assert (
        len(loaded) == 20 and np.asarray(loaded[7]["image"]).shape == (224, 107) and np.asarray(loaded[7]["image"]).max() == 7
    )


def test_pandas_opens_the_folder_and_sees_no_side_tables(shard):
    import pandas as pd

    frame = pd.read_parquet(shard.parent)
    assert len(frame) == 20 and frame["dhash"].dtype == "uint64"
    assert np.asarray(Image.open(io.BytesIO(frame.loc[3, "image"]["bytes"]))).max() == 3


def test_duckdb_counts_and_filters(shard):
    import duckdb

    query = f"select count(*), min(octet_length(image.bytes)), max(\"index\") from '{shard.parent}/*.parquet' where axis = 0"
    count, smallest, index = duckdb.connect().execute(query).fetchall()[0]
    assert count == 20 and smallest > 224 * 100 and index == 19
