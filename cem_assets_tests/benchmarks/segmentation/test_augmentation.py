"""Training crops: their geometry against a slow resampling, their distributions, and independence of threads and order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from cem_assets.benchmarks.segmentation.augmentation import CropSampler, RotatedWindow, augment, draw_window, resample_window
from cem_assets.benchmarks.segmentation.params import SegmentationParams
from cem_assets_tests.benchmarks.segmentation.models import tiny_params

STILL = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "rotation_share": 0.0, "jitter_share": 0.0, "flip_share": 0.0}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def mirrored(place: int, size: int) -> int:
    """Mirror a place beyond the border back into the image."""
    while not 0 <= place < size:
        place = -place if place < 0 else 2 * (size - 1) - place
        if size == 1:
            return 0
    return place


def slow_crop(image: np.ndarray, crop: RotatedWindow, side: int) -> np.ndarray:
    """Resample pixel by pixel: flip and rotate the place of each pixel, and interpolate between its four neighbours."""
    out, angle = np.zeros((side, side)), math.radians(crop.angle_deg)
    for row in range(side):
        for column in range(side):
            down = ((row + 0.5) / side - 0.5) * crop.height * (-1 if crop.is_flipped_y else 1)
            right = ((column + 0.5) / side - 0.5) * crop.width * (-1 if crop.is_flipped_x else 1)
            # After a rotation to the left, what is to the right of the centre in the crop is below it in the image.
            y = crop.top + crop.height / 2 + math.cos(angle) * down + -math.sin(angle) * right - 0.5
            x = crop.left + crop.width / 2 + math.sin(angle) * down + math.cos(angle) * right - 0.5
            for y_near, y_share in ((math.floor(y), 1 - (y - math.floor(y))), (math.floor(y) + 1, y - math.floor(y))):
                for x_near, x_share in ((math.floor(x), 1 - (x - math.floor(x))), (math.floor(x) + 1, x - math.floor(x))):
                    out[row, column] += y_share * x_share * image[mirrored(y_near, len(image)), mirrored(x_near, len(image[0]))]
    return out


@settings(max_examples=25)
@given(
    st.tuples(st.integers(2, 12), st.integers(2, 12)),
    st.builds(
        RotatedWindow, *[st.integers(-6, 8)] * 2, *[st.integers(1, 14)] * 2, st.floats(-180, 180), st.booleans(), st.booleans()
    ),
)
def test_a_crop_equals_a_slow_one(size, crop):
    image = picture(*size)
    np.testing.assert_allclose(resample_window(image, crop, 8, order=1), slow_crop(image, crop, 8), atol=1e-2)


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (RotatedWindow(0, 0, 9, 9), lambda image: image),
        (RotatedWindow(0, 0, 9, 9, 90.0), lambda image: np.rot90(image, -1)),
        (RotatedWindow(0, 0, 9, 9, -90.0), np.rot90),
        (RotatedWindow(0, 0, 9, 9, 0.0, True), lambda image: image[:, ::-1]),
        (RotatedWindow(0, 0, 9, 9, 0.0, False, True), lambda image: image[::-1]),
        (RotatedWindow(-2, 0, 9, 9), lambda image: np.pad(image, ((2, 0), (0, 0)), mode="reflect")[:9]),
    ],
)
@pytest.mark.parametrize("order", [0, 1])
def test_turns_and_flips_by_whole_pixels_are_exact(crop, expected, order):
    image = picture(9, 9)
    found = resample_window(image, crop, 9, order)
    assert found.dtype == (np.float32 if order else np.uint8)
    np.testing.assert_allclose(found, expected(image), atol=1e-3)


def test_the_mask_goes_where_the_image_goes():
    y, x = np.mgrid[:90, :120]
    mask = (((y - 40) ** 2 + (x - 70) ** 2 < 900) ^ ((y // 30 + x // 40) % 2 == 0)).astype(np.uint8)
    params = tiny_params(crop_px=64, mean=0.0, std=1.0, jitter_share=0.0)
    for number in range(20):
        image, cut = augment(mask * 255, mask, params, (number,))
        assert (image.shape, image.dtype, cut.shape, cut.dtype) == ((1, 64, 64), np.float32, (64, 64), np.uint8)
        clear = np.abs(image[0] - 0.5) > 0.499  # pixels that are not interpolated between both classes
        assert clear.mean() > 0.5
        np.testing.assert_array_equal(image[0][clear] > 0.5, cut[clear] == 1)


def test_without_augmentation_a_crop_is_the_normalised_image_and_a_small_image_is_mirrored():
    image, mask = picture(32, 20), (picture(32, 20, 1) > 127).astype(np.uint8)
    found, cut = augment(image, mask, tiny_params(**STILL), (0,))
    padded = np.pad(image, ((0, 0), (6, 6)), mode="reflect")
    np.testing.assert_allclose(found[0], (padded / 255 - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_array_equal(cut, np.pad(mask, ((0, 0), (6, 6)), mode="reflect"))


def test_sizes_ratios_and_angles_follow_their_distributions():
    params = SegmentationParams(iters=1, crop_px=64)
    mask = np.zeros((400, 400), np.uint8)
    crops = [draw_window(mask, params, np.random.default_rng(number)) for number in range(2000)]
    area = np.array([crop.height * crop.width / mask.size for crop in crops])
    ratio = np.array([crop.width / crop.height for crop in crops])
    assert area.min() >= 0.078
    assert area.max() <= 1.0
    assert (ratio.min(), ratio.max()) == (pytest.approx(0.5, abs=0.02), pytest.approx(1.5, abs=0.02))
    small = area < 0.3  # crops of this size fit with any ratio
    assert kstest(area[small], "uniform", (0.08, 0.22)).pvalue > 1e-3
    assert kstest(np.log(ratio[small]), "uniform", (np.log(0.5), np.log(3))).pvalue > 1e-3
    angles = np.array([crop.angle_deg for crop in crops])
    assert abs(np.mean(angles != 0) - 0.5) < 0.05
    assert kstest(angles[angles != 0], "uniform", (-180, 360)).pvalue > 1e-3
    for flips in ([crop.is_flipped_x for crop in crops], [crop.is_flipped_y for crop in crops]):
        assert abs(np.mean(flips) - 0.5) < 0.05
    assert all(crop.top >= 0 and crop.top + crop.height <= 400 for crop in crops)
    assert all(crop.left >= 0 and crop.left + crop.width <= 400 for crop in crops)


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.integers(20, 120), st.integers(20, 120))
def test_a_crop_that_should_hold_foreground_holds_a_pixel_of_it(seed, height, width):
    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    mask[y, x] = 3
    crop = draw_window(mask, tiny_params(crop_px=64, foreground_share=1.0, rotation_share=1.0), generator)
    assert crop.contains(y, x)


def test_sparse_sets_show_far_more_foreground_when_asked():
    mask = np.zeros((500, 500), np.uint8)
    mask[440:446, 30:36] = 1
    small = {"crop_scale": (0.02, 0.05), "crop_px": 64}
    shares = []
    for foreground_share in (0.0, 0.8):
        params = tiny_params(**small, foreground_share=foreground_share)
        shares.append(np.mean([augment(mask, mask, params, (number,))[1].any() for number in range(200)]))
    assert shares[0] < 0.15
    assert 0.7 < shares[1] < 0.9
    nothing = augment(np.zeros_like(mask), np.zeros_like(mask), tiny_params(**small, foreground_share=1.0), (0,))
    assert not nothing[1].any()


def test_brightness_contrast_noise_and_blur_do_what_they_say():
    gray = np.full((32, 32), 128, np.uint8)
    plain = {**STILL, "mean": 0.0, "std": 1.0}
    jittered = [
        float(augment(gray, gray // 255, tiny_params(**plain | {"jitter_share": 1.0}), (n,))[0].mean()) for n in range(300)
    ]
    assert min(jittered) < 0.5 * 0.75 - 0.2
    assert max(jittered) > 0.5 * 1.25 + 0.2
    noisy = [float(augment(gray, gray // 255, tiny_params(**plain, has_noise=True), (n,))[0].std()) for n in range(300)]
    is_noisy = np.array(noisy) > 1e-6
    assert abs(is_noisy.mean() - 0.5) < 0.1
    assert 19 / 255 < min(np.array(noisy)[is_noisy]) < 22 / 255  # the standard deviation is the square root of 400 to 1200
    assert 33 / 255 < max(noisy) < 37 / 255
    point = np.zeros((32, 32), np.uint8)
    point[16, 16] = 255
    blurred = [augment(point, point // 255, tiny_params(**plain, has_blur=True), (n,))[0][0] for n in range(100)]
    reach = sorted({int((image > 0).any(axis=0).sum()) for image in blurred})
    assert reach == [1, 3, 5, 7]
    assert all(image.sum() == pytest.approx(1, abs=1e-4) for image in blurred)


def items(num: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(picture(40 + n, 50), (picture(40 + n, 50, 99) > 200).astype(np.uint8)) for n in range(num)]


def test_batches_depend_on_the_step_alone():
    params = tiny_params(has_noise=True)
    forward = CropSampler(items(), params)
    threaded = CropSampler(items(), params, num_threads=3)
    made = [forward(step) for step in range(4)]
    for step in (0, 1, 3, 2):  # out of order too
        for one, other in zip(made[step], threaded(step), strict=True):
            np.testing.assert_array_equal(one, other)
    threaded.close()
    assert not np.array_equal(made[0][0], CropSampler(items(), tiny_params(has_noise=True, seed=6))(0)[0])
    images, masks = made[0]
    assert (images.shape, images.dtype, masks.shape, masks.dtype) == ((3, 1, 32, 32), np.float32, (3, 32, 32), np.uint8)


@pytest.mark.parametrize(("num", "batch_size"), [(5, 3), (2, 7), (1, 2)])
def test_every_pass_takes_each_image_once_in_an_order_of_its_own(num, batch_size):
    sampler = CropSampler(items(num), tiny_params(batch_size=batch_size))
    taken = [row for step in range(3 * num) for row in sampler.rows(step)]
    passes = [taken[start : start + num] for start in range(0, len(taken) - num, num)]
    assert all(sorted(one) == list(range(num)) for one in passes)
    assert num == 1 or len({tuple(one) for one in passes}) > 1


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((picture(40, 40).astype(np.float32), np.zeros((40, 40), np.uint8)), "the image is float32"),
        ((picture(40, 40), np.zeros((40, 41), np.uint8)), "expected equal sizes"),
        ((picture(40, 40), np.full((40, 40), 255, np.uint8)), "value 255, expected class numbers of 0 to 1"),
        ((np.zeros((0, 4), np.uint8), np.zeros((40, 40, 3), np.uint8)), r"the image is uint8 \(0, 4\).*the mask is"),
    ],
)
def test_an_image_that_does_not_fit_its_mask_is_named(item, message, num_threads):
    sampler = CropSampler([item], tiny_params(), num_threads)
    with pytest.raises(ValueError, match=f"training image 0 cannot be used: .*{message}"):
        sampler(0)
    sampler.close()


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no training images"):
        CropSampler([], tiny_params())
