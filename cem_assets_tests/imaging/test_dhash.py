"""The fast difference hash equals that of imagehash bit for bit, for any patch."""

import logging

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cem_assets.imaging import dhash as module
from cem_assets.imaging.dhash import BrickHashes, dhash, imagehash_dhash, self_test, stretch_to_hash_side

sides = st.integers(1, 224)


def patch(height: int, width: int, seed: int) -> np.ndarray:
    """Draw patches of noise, smooth ramps, steps or nearly constant values, as real and difficult patches have them."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (height, width), dtype=np.uint8)
    match seed % 4:
        case 0:
            return noise
        case 1:
            y, x = np.mgrid[:height, :width]
            return ((x * generator.integers(1, 5) + y * generator.integers(0, 4) + noise // 32) % 256).astype(np.uint8)
        case 2:
            return (noise // 128 * 255).astype(np.uint8)
        case _:
            return (120 + noise // 120).astype(np.uint8)


def by_definition(image: np.ndarray) -> int:
    resized = Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)
    return int(str(imagehash.dhash(resized, hash_size=8)), 16)


def test_the_installed_pillow_passes_the_self_test():
    assert self_test()


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.integers(0, 10_000))
def test_hash_of_any_size_equals_imagehash(height, width, seed):
    image = patch(height, width, seed)
    assert int(dhash(image[None])[0]) == by_definition(image)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(0, 10_000))
def test_stretching_equals_pillow(height, width, seed):
    image = patch(height, width, seed)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(stretch_to_hash_side(image[None])[0], expected)


def test_patches_of_every_width_and_full_height_hash_as_imagehash_does():
    for width in range(1, 224):
        images = np.stack([patch(224, width, 4 * width + kind) for kind in range(2)])
        assert dhash(images).tolist() == [by_definition(image) for image in images], f"224 x {width}"


def test_full_patches_are_not_resized():
    image = patch(224, 224, 0)[None]
    assert stretch_to_hash_side(image) is image


def test_patches_larger_than_the_fast_path_takes_are_hashed_all_the_same():
    image = patch(300, 260, 1)
    assert int(dhash(image[None])[0]) == by_definition(image)


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_constant_patches_hash_to_zero(value):
    assert dhash(np.full((2, 224, 224), value, np.uint8)).tolist() == [0, 0]


def test_hex_digits_equal_imagehash_text():
    image = patch(224, 224, 4)
    assert f"{int(dhash(image[None])[0]):016x}" == str(imagehash.dhash(Image.fromarray(image), hash_size=8))


@pytest.mark.parametrize("shape", [(224, 224, 224), (100, 224, 224), (224, 130, 224), (224, 224, 70), (64, 65, 66)])
def test_every_plane_of_a_brick_equals_imagehash(shape):
    brick = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    hashes = BrickHashes(brick)
    for axis in range(3):
        chosen = range(0, shape[axis], 17)
        expected = [by_definition(np.ascontiguousarray(np.take(brick, index, axis=axis))) for index in chosen]
        assert hashes.along(axis)[list(chosen)].tolist() == expected


def test_empty_batches_give_no_hashes():
    assert dhash(np.empty((0, 224, 224), np.uint8)).shape == (0,)


@pytest.mark.parametrize("batch", [np.zeros((2, 4, 4), np.uint16), np.zeros((4, 4), np.uint8)])
def test_other_arrays_are_refused_in_words(batch):
    with pytest.raises(ValueError, match=r"uint8 patches of shape"):
        dhash(batch)


def test_a_pillow_that_differs_is_noticed_and_hashed_the_slow_way(monkeypatch, caplog):
    image = patch(130, 200, 0)
    module.self_test.cache_clear()
    monkeypatch.setattr(module, "_fast", lambda patches: np.zeros(len(patches), np.uint64))
    try:
        with caplog.at_level(logging.WARNING):
            assert int(dhash(image[None])[0]) == by_definition(image)
        assert "fast dHash differs from imagehash under Pillow" in caplog.text
        assert BrickHashes(image[None]).along(0).tolist() == [by_definition(image)]
    finally:
        monkeypatch.undo()
        module.self_test.cache_clear()


def test_the_slow_way_is_the_definition():
    image = patch(99, 201, 8)
    assert imagehash_dhash(image) == by_definition(image)
