"""Shards compared with the zarr library: the same bytes, read by either, and damage is found."""

import itertools

import imagecodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from cem_assets.cem.volumes.zarr_shards import ZSTD_LEVEL, chunk_order, decode_shard, encode_shard

SHAPES = [
    # shapes of the array, of a shard, of a chunk
    ((40, 40, 40), (20, 20, 20), (10, 10, 10)),  # whole shards
    ((33, 27, 41), (20, 20, 20), (10, 10, 10)),  # partial shards, with chunks wholly outside of the array
    ((7, 50, 70), (3, 60, 80), (1, 20, 20)),  # flat bricks, three chunks high and four wide
    ((5, 5, 5), (8, 8, 8), (8, 8, 8)),  # one chunk, partial
    ((90, 50, 10), (50, 30, 10), (10, 10, 10)),  # 5 x 3 x 1 chunks
]


def by_zarr(array_shape, shard, chunk):
    memory = MemoryStore()
    array = zarr.create_array(
        memory,
        shape=array_shape,
        chunks=chunk,
        shards=shard,
        dtype="uint8",
        fill_value=0,
        config={"write_empty_chunks": True},
        compressors=(ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()),
    )
    return array, memory


def boxes(array_shape, shard):
    for cell in itertools.product(*(range(-(-side // step)) for side, step in zip(array_shape, shard, strict=True))):
        box = tuple(slice(c * s, min((c + 1) * s, end)) for c, s, end in zip(cell, shard, array_shape, strict=True))
        yield "c/" + "/".join(map(str, cell)), box


def micrograph(shape) -> np.ndarray:
    generator = np.random.default_rng(7)
    voxels = np.clip(generator.normal(150, 9, shape), 0, 255).astype(np.uint8)
    voxels[: shape[0] // 3] = 0  # blank chunks are written too
    return voxels


@pytest.mark.parametrize(("array_shape", "shard", "chunk"), SHAPES)
def test_the_bytes_are_those_of_the_zarr_library(array_shape, shard, chunk):
    voxels = micrograph(array_shape)
    array, memory = by_zarr(array_shape, shard, chunk)
    array[:] = voxels
    for key, box in boxes(array_shape, shard):
        assert encode_shard(voxels[box], chunk, shard) == memory._store_dict[key].to_bytes()


@pytest.mark.parametrize(("array_shape", "shard", "chunk"), SHAPES)
def test_each_reads_what_the_other_wrote(array_shape, shard, chunk):
    voxels = micrograph(array_shape)
    theirs, memory = by_zarr(array_shape, shard, chunk)
    theirs[:] = voxels
    ours, filled = by_zarr(array_shape, shard, chunk)
    for key, box in boxes(array_shape, shard):
        decoded = decode_shard(memory._store_dict[key].to_bytes(), chunk, shard, voxels[box].shape)
        assert np.array_equal(decoded, voxels[box]) and decoded.flags.c_contiguous
        filled._store_dict[key] = default_buffer_prototype().buffer.from_bytes(encode_shard(voxels[box], chunk, shard))
    assert np.array_equal(ours[:], voxels)


def test_voxels_in_any_memory_order_give_the_same_bytes():
    voxels = micrograph((20, 20, 20))
    turned = np.asfortranarray(voxels)
    assert encode_shard(turned, (10, 10, 10), (20, 20, 20)) == encode_shard(voxels, (10, 10, 10), (20, 20, 20))


@pytest.mark.parametrize("grid", [(2, 2, 2), (3, 4, 1), (1, 1, 1), (16, 2, 2), (5, 3, 7)])
def test_chunks_come_in_the_librarys_order(grid):
    from zarr.core.indexing import morton_order_iter

    assert list(chunk_order(grid)) == list(morton_order_iter(grid))


def test_every_damaged_byte_is_found():
    voxels = micrograph((12, 12, 12))
    whole = encode_shard(voxels, (8, 8, 8), (16, 16, 16))
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0x10
        with pytest.raises(ValueError, match="checksum|absent"):
            decode_shard(bytes(data), (8, 8, 8), (16, 16, 16), voxels.shape)
    for length in (0, 10, 131, len(whole) - 1):
        with pytest.raises(ValueError, match=r"bytes, but its index alone takes|checksum"):
            decode_shard(whole[:length], (8, 8, 8), (16, 16, 16), voxels.shape)


@pytest.mark.parametrize("num_voxels", [0, 7, 511, 513, 1 << 30])
def test_chunks_of_another_size_are_refused(num_voxels):
    import google_crc32c

    packed = imagecodecs.zstd_encode(bytes(num_voxels), 1)  # its checksums are right, so only its size shows that it is wrong
    checked = packed + google_crc32c.value(packed).to_bytes(4, "little")
    index = np.array([0, len(checked)], "<u8").tobytes()
    data = checked + index + google_crc32c.value(index).to_bytes(4, "little")
    with pytest.raises(ValueError, match="cannot be unpacked|has .* voxels; expected 512"):
        decode_shard(data, (8, 8, 8), (8, 8, 8), (8, 8, 8))


def test_chunks_that_are_not_there_are_errors_not_zeros():
    import google_crc32c

    index = np.full(2, 0xFFFF_FFFF_FFFF_FFFF, "<u8").tobytes()
    data = index + google_crc32c.value(index).to_bytes(4, "little")
    with pytest.raises(ValueError, match="absent"):
        decode_shard(data, (8, 8, 8), (8, 8, 8), (8, 8, 8))
