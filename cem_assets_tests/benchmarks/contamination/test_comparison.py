"""Contamination: planted copies are found, unrelated and blank pictures are not, on drawn and on real pictures."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from cem_assets.benchmarks.contamination import fingerprints as prints
from cem_assets.benchmarks.contamination.comparison import (
    compare_pictures,
    contaminated_rows,
    contamination_pictures,
    find_contamination,
)
from cem_assets.benchmarks.contamination.fingerprints import (
    TURNS,
    Fingerprints,
    joined,
    release_fingerprints,
    turned,
)
from cem_assets.benchmarks.contamination.hash_index import near_hashes


def texture(seed, side=(448, 448), grain=3.0):
    """Cell-like clutter: noise smoothed at two scales."""
    noise = np.random.default_rng(seed).normal(size=side)
    mixed = gaussian_filter(noise, grain) * grain + gaussian_filter(noise[::-1], 4 * grain) * 4 * grain
    return np.clip(mixed / mixed.std() * 45 + 120, 0, 255).astype(np.uint8)


def jpeg(image, quality):
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality)
    return np.asarray(Image.open(sink))


def search(patches, images, **options):
    """Fingerprint and search; the lists are read by index."""
    release, test = release_fingerprints(patches), prints.test_image_fingerprints(images)
    return find_contamination(release, patches.__getitem__, test, images.__getitem__, **options)


def as_8_bit(values):
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


CHANGES = {
    "none": lambda a: a,
    "JPEG of quality 90": lambda a: jpeg(a, 90),
    "JPEG of quality 50": lambda a: jpeg(a, 50),
    "brighter": lambda a: as_8_bit(a + 20.0),
    "less contrast": lambda a: as_8_bit(a * 0.6 + 30),
    "more contrast": lambda a: as_8_bit(a * 1.2 - 20),
    "gamma": lambda a: as_8_bit(255 * (a / 255) ** 0.8),
    "noise": lambda a: as_8_bit(a + np.random.default_rng(0).normal(0, 3, a.shape)),
}


@pytest.fixture(scope="module")
def drawn():
    """Three test images and five unrelated patches, with the fingerprints of the images."""
    images = [texture(seed) for seed in (1, 2, 3)]
    return images, [texture(seed, (224, 224)) for seed in range(10, 15)], prints.test_image_fingerprints(images)


def found_in(drawn, patch):
    images, others, test = drawn
    patches = [*others, patch]
    return find_contamination(release_fingerprints(patches), patches.__getitem__, test, images.__getitem__)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", [(0, 0), (112, 0), (0, 112), (112, 112), (224, 112)])
def test_copies_and_crops_by_half_a_patch_are_found_however_encoded(drawn, change, place):
    y, x = place
    (pair,) = found_in(drawn, CHANGES[change](drawn[0][1][y : y + 224, x : x + 224].copy()))
    assert (pair.release_row, pair.test_image, pair.window, pair.turn) == (5, 1, (y, x, 224, 224), "unchanged")
    assert pair.is_exact == (change == "none") and pair.correlation > 0.97


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("change", ["none", "JPEG of quality 50"])
def test_flips_and_quarter_turns_are_found_and_named(drawn, turn, change):
    patch = CHANGES[change](turned(drawn[0][2][112:336, 224:448], turn))
    (pair,) = found_in(drawn, patch)
    assert (pair.test_image, pair.window, pair.turn) == (2, (112, 224, 224, 224), TURNS[turn])


@pytest.mark.parametrize("turn", [0, 3, 6])
@pytest.mark.parametrize("shift", [(112, 0), (0, 112), (112, 112), (-112, 112)])
def test_a_patch_that_shares_half_or_a_quarter_with_a_small_test_image_is_found(shift, turn):
    source = texture(7, (672, 672))
    image, (dy, dx) = source[224:448, 224:448].copy(), shift
    patch = turned(source[224 + dy : 448 + dy, 224 + dx : 448 + dx], turn)
    pairs = search([texture(8, (224, 224)), jpeg(patch, 75)], [image])
    assert [(pair.release_row, pair.turn) for pair in pairs] == [(1, TURNS[turn])]
    assert pairs[0].window[2:] == (112, 112) == pairs[0].release_window[2:]


def test_a_test_image_shrunk_to_a_patch_is_found(drawn):
    patch = np.asarray(Image.fromarray(drawn[0][0]).resize((224, 224), Image.Resampling.BILINEAR))
    (pair,) = found_in(drawn, patch)
    assert (pair.test_image, pair.window) == (0, (0, 0, 448, 448))


def test_patches_and_images_smaller_than_a_tile_are_compared_whole():
    images = [texture(seed, (64, 64), grain=1.5) for seed in range(4)]
    pairs = search([texture(9, (64, 64), grain=1.5), turned(images[2], 3)], images)
    assert [(pair.release_row, pair.test_image) for pair in pairs] == [(1, 2)]


def blanks():
    generator = np.random.default_rng(0)
    ramp = np.tile(np.linspace(100, 140, 224), (224, 1))
    half = np.where(np.arange(224)[:, None] < 112, 0, 128) * np.ones((1, 224))
    smooth = gaussian_filter(generator.normal(size=(224, 224)), 60)
    pictures = [np.zeros((224, 224)), np.full((224, 224), 128.0), ramp, half, 120 + smooth / smooth.std() * 20]
    noisy = [as_8_bit(picture + generator.normal(0, 2, (224, 224))) for picture in pictures for _ in range(2)]
    return [as_8_bit(picture) for picture in pictures[:2]] + [as_8_bit(half)] + noisy


def test_blank_padded_and_shaded_pictures_give_no_alarm():
    pictures = blanks()
    images, patches = pictures[:3] + pictures[3::2], pictures[:3] + pictures[4::2]
    assert search(patches, images, max_distance=12) == []


def test_an_exact_copy_is_found_even_where_there_is_little_contrast():
    image = as_8_bit(120 + np.random.default_rng(3).normal(0, 3, (224, 224)))
    other = as_8_bit(120 + np.random.default_rng(4).normal(0, 3, (224, 224)))
    assert not prints.has_contrast(image)
    (pair,) = search([other, turned(image, 6)], [image])
    assert (pair.release_row, pair.is_exact, pair.correlation) == (1, True, 1.0)


def test_shared_lighting_is_not_enough():
    light = np.add.outer(np.linspace(60, 200, 224), np.linspace(-20, 20, 224))
    first, second = (as_8_bit(light + gaussian_filter(np.random.default_rng(n).normal(0, 20, (224, 224)), 1)) for n in (0, 1))
    correlation, detail = compare_pictures(first, second)
    assert correlation > 0.97 and detail < 0.2
    assert search([first], [second], max_distance=40) == []
    assert compare_pictures(first, np.full((9, 9), 5, np.uint8)) == (0.0, 0.0)


def test_a_copy_that_is_off_by_a_px_is_aligned(drawn):
    (pair,) = found_in(drawn, drawn[0][0][1:225, 113:337].copy())
    assert pair.correlation > 0.9 and not pair.is_exact


def test_several_images_and_rows_are_told_in_order_once_each(drawn):
    images, others, _ = drawn
    patches = [images[2][:224, :224].copy(), others[0], images[0][:224, :224].copy(), images[0][112:336, :224].copy()]
    pairs = search(patches, [*images, images[0]])
    assert [(pair.test_image, pair.release_row) for pair in pairs] == [(0, 2), (0, 3), (2, 0), (3, 2), (3, 3)]
    assert contaminated_rows(pairs).tolist() == [0, 2, 3]
    assert contaminated_rows([]).tolist() == []


def real_sets(folder):
    def gray(path):
        return np.asarray(Image.open(path).convert("L"))

    gala = sorted((folder / "em3d_labelled/gala_fibsem/test-image-png").glob("*.png"))
    return {
        "vnc": [gray(path) for path in sorted((folder / "em3d_labelled/vnc_sstem_stack1/raw").glob("*"))[::10]],
        "isbi": [gray(folder / f"em2d_labelled/isbi2012_membrane/image/{n}.png") for n in (0, 15)],
        "axons": [gray(folder / f"em2d_labelled/axondeepseg/{name}") for name in ("sem_image.png", "tem_image_rgb.png")],
        "gala": [gray(path) for path in gala[::25]],
    }


def grid(image):
    """Cut patches as the store does: up to 111 px at the border are in no patch."""
    height, width = image.shape

    def starts(side):
        return [224 * n for n in range(max(1, round(side / 224)))]

    return [image[y : y + 224, x : x + 224].copy() for y in starts(height) for x in starts(width)]


@pytest.fixture(scope="module")
def real(test_data):
    sets = real_sets(test_data)
    patches = {name: [patch for image in images for patch in grid(image)] for name, images in sets.items()}
    return (
        sets,
        patches,
        {name: release_fingerprints(each) for name, each in patches.items()},
        {name: prints.test_image_fingerprints(images) for name, images in sets.items()},
    )


def test_unrelated_real_sets_give_no_pair_even_at_a_loose_distance(real):
    sets, patches, release, test = real
    for own in sets:
        for other in sets:
            found = find_contamination(
                release[own], patches[own].__getitem__, test[other], sets[other].__getitem__, max_distance=10
            )
            rows = {pair.release_row for pair in found}
            assert (rows == set(range(len(patches[own])))) if own == other else not found, (own, other)


@pytest.mark.parametrize(("shift", "turn"), [((0, 0), 1), ((112, 0), 6), ((0, 112), 0), ((112, 112), 3)])
def test_planted_real_patches_are_all_found(real, shift, turn):
    sets, _, _, test = real
    for name, images in sets.items():
        planted, sources = [], []
        for number, image in enumerate(images):
            for patch in grid(image[shift[0] :, shift[1] :]):
                if patch.shape == (224, 224):
                    planted.append(jpeg(turned(CHANGES["less contrast"](patch), turn), 75))
                    sources.append(number)
        release = release_fingerprints(planted)
        found = find_contamination(release, planted.__getitem__, test[name], images.__getitem__)
        assert {(row, number) for row, number in enumerate(sources)} <= {(pair.release_row, pair.test_image) for pair in found}


def test_pairs_are_drawn_side_by_side(drawn):
    images, others, _ = drawn
    patches = [turned(images[0][:224, :224], 3), others[0], *(images[1][y : y + 224, :224].copy() for y in (0, 112, 224))]
    pairs = search(patches, images)
    picture = Image.open(io.BytesIO(contamination_pictures(pairs, patches.__getitem__, images.__getitem__)))
    assert picture.format == "PNG" and picture.size[0] > 600
    shown = np.asarray(picture.convert("L")).astype(float)
    left, right = shown[22:178, 8:164], shown[22:178, 174:330]  # inside the frame of the first pair
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.98
    again = contamination_pictures(pairs, patches.__getitem__, images.__getitem__)
    fewer = contamination_pictures(pairs, patches.__getitem__, images.__getitem__, limit=1)
    assert again != fewer and again == contamination_pictures(pairs, patches.__getitem__, images.__getitem__)
    assert Image.open(io.BytesIO(fewer)).size[1] < picture.size[1]
    assert Image.open(io.BytesIO(contamination_pictures([], patches.__getitem__, images.__getitem__))).format == "PNG"


def test_fingerprints_come_back_from_a_table_and_can_be_joined(drawn):
    images, others, test = drawn
    again = Fingerprints.from_table(test.to_table())
    parts = joined([prints.test_image_fingerprints(images[:1]), prints.test_image_fingerprints(images[1:], first_item=1)])
    for same in (again, parts):
        for name, array in vars(test).items():
            assert np.array_equal(getattr(same, name), array) and getattr(same, name).dtype == array.dtype
    assert len(release_fingerprints(others)) == 5 * len(others) and len(joined([])) == 0
    assert np.count_nonzero(test.item == 1) * 3 == len(test)


@pytest.mark.parametrize(
    ("length", "side", "expected"),
    [(224, 224, [0]), (223, 224, []), (336, 224, [0, 112]), (400, 224, [0, 112, 176]), (130, 112, [0, 18])],
)
def test_parts_start_every_half_patch_and_reach_the_border(length, side, expected):
    assert prints.starts_along(length, side) == expected


@given(st.integers(0, 1000), st.integers(0, 20), st.integers(0, 40), st.integers(0, 40))
def test_near_hashes_equal_a_slow_search(seed, max_distance, num_queries, num_others):
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 1 << 63, 3, dtype=np.uint64)

    def some(num):
        flips = (generator.random((num, 64)) < 0.06).astype(np.uint64) << np.arange(64, dtype=np.uint64)
        return centres[generator.integers(0, 3, num)] ^ np.bitwise_or.reduce(flips, axis=1)

    queries, others = some(num_queries), some(num_others)
    apart = np.bitwise_count(queries[:, None] ^ others[None, :]).astype(int)
    expected = [[q, o, apart[q, o]] for q in range(num_queries) for o in range(num_others) if apart[q, o] <= max_distance]
    assert near_hashes(queries, others, max_distance).tolist() == expected


def test_pairs_beyond_the_first_buffer_are_kept():
    same = np.zeros(300, np.uint64)
    assert len(near_hashes(same, same, 4)) == 90_000
    with pytest.raises(ValueError, match=r"expected 0\.\.63"):
        near_hashes(same, same, 64)


def test_what_is_no_8_bit_gray_picture_is_refused_by_number(drawn):
    with pytest.raises(ValueError, match=r"patch 1 is uint16 of shape \(9, 9\)"):
        release_fingerprints([texture(0, (224, 224)), np.zeros((9, 9), np.uint16)])
    with pytest.raises(ValueError, match="test image 4 is uint8 of shape"):
        prints.test_image_fingerprints([np.zeros((3, 9, 9), np.uint8)], first_item=4)
    patches = [drawn[0][0][:224, :224].copy()]
    with pytest.raises(ValueError, match="make the fingerprints anew"):
        find_contamination(release_fingerprints(patches), lambda row: patches[0][:100], drawn[2], drawn[0].__getitem__)


def test_what_only_has_lighting_or_an_edge_is_not_searched_for():
    assert not any(prints.has_contrast(picture) for picture in blanks())
    assert prints.has_contrast(texture(0, (224, 224))) and prints.has_contrast(as_8_bit(texture(0, (112, 112)) * 0.2 + 90))
