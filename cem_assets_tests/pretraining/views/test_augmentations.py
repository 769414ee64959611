"""Batch augmentation, compared with slow ones: torchvision and PIL image by image, scipy pixel by pixel."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as tf
from PIL import Image, ImageFilter
from pydantic import ValidationError
from scipy import ndimage
from scipy.stats import ks_2samp, kstest

from cem_assets.pretraining.methods.params import ViewSpec
from cem_assets.pretraining.views.augmentations import (
    SUPERVISED,
    AugmentationParams,
    BatchAugmentation,
    add_noise_,
    blur_,
    jitter_,
    normalised,
    resample,
)
from cem_assets.pretraining.views.view_parameters import ViewParameters, draw_parameters
from cem_assets_tests.datasets import cells

PARAMS = AugmentationParams()
NUM = 4000
ONE_VIEW = (ViewSpec(1, 224, (0.2, 1.0)),)


def draw(num=NUM, size=(224, 224), scale=(0.2, 1.0), params=PARAMS, seed=0) -> ViewParameters:
    return draw_parameters(num, *size, scale, params, torch.Generator().manual_seed(seed))


def images(num=8, size=(224, 224)) -> torch.Tensor:
    return torch.from_numpy(np.stack([cells(size, seed) for seed in range(num)]))


def unchanged(num: int, size: tuple[int, int], **changes) -> ViewParameters:
    """Make parameters that change nothing except for the given ones."""
    zeros, ones, never = torch.zeros(num), torch.ones(num), torch.zeros(num, dtype=torch.bool)
    nothing = {
        "angle_deg": zeros, "is_turned": never, "top": zeros, "left": zeros, "height": ones * size[0], "width": ones * size[1],
        "is_flipped_x": never, "is_flipped_y": never, "brightness": ones, "contrast": ones, "is_contrast_first": never,
        "blur_sigma_px": zeros, "noise_variance": zeros,
    }  # fmt: skip
    return ViewParameters(**{name: torch.as_tensor(value) for name, value in (nothing | changes).items()})


# The drawn parameters


def chance(values: torch.Tensor, share: float) -> bool:
    """Tell whether a count is within four standard deviations of a share."""
    return abs(float(values.double().mean()) - share) < 4 * math.sqrt(share * (1 - share) / len(values))


def test_factors_follow_their_distributions():
    drawn = draw(20_000)
    assert chance(drawn.is_turned, 0.5) and chance(drawn.is_flipped_x, 0.5) and chance(drawn.is_flipped_y, 0.5)
    assert (
        chance(drawn.is_contrast_first, 0.5) and chance(drawn.blur_sigma_px > 0, 0.5) and chance(drawn.noise_variance > 0, 0.5)
    )
    assert (drawn.angle_deg[~drawn.is_turned] == 0).all()
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4)):
        assert kstest(getattr(drawn, name), "uniform", (low, high - low)).pvalue > 1e-3
    assert kstest(drawn.angle_deg[drawn.is_turned], "uniform", (-180, 360)).pvalue > 1e-3
    assert kstest(drawn.blur_sigma_px[drawn.blur_sigma_px > 0], "uniform", (0.1, 1.9)).pvalue > 1e-3
    logs = torch.log10(drawn.noise_variance[drawn.noise_variance > 0])
    assert kstest(logs, "uniform", (-5, 1)).pvalue > 1e-3


def test_draws_are_independent_of_each_other():
    drawn = draw(20_000)
    columns = torch.stack([value.double() for value in vars(drawn).values()])
    crop = [list(vars(drawn)).index(name) for name in ("top", "left", "height", "width")]
    others = [n for n in range(len(columns)) if n not in crop]
    correlation = torch.corrcoef(columns).abs().fill_diagonal_(0)
    assert correlation[others][:, crop].max() < 0.03
    names = list(vars(drawn))
    correlation[names.index("angle_deg"), names.index("is_turned")] = 0
    correlation[names.index("is_turned"), names.index("angle_deg")] = 0
    assert correlation[others][:, others].max() < 0.03


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.14), (0.14, 1.0)])
@pytest.mark.parametrize("size", [(224, 224), (100, 224), (64, 300)])
def test_crops_are_those_of_torchvision(scale, size):
    torch.manual_seed(1)
    blank = torch.empty(1, *size)
    theirs = np.array([tf.RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(NUM)])
    drawn = draw(size=size, scale=scale)
    ours = np.stack([getattr(drawn, name).numpy() for name in ("top", "left", "height", "width")], 1)
    assert (ours == np.round(ours)).all() and (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= size).all()
    for values in (
        lambda crop: crop[:, 0], lambda crop: crop[:, 1], lambda crop: crop[:, 2], lambda crop: crop[:, 3],
        lambda crop: crop[:, 2] * crop[:, 3], lambda crop: crop[:, 3] / crop[:, 2],
    ):  # fmt: skip
        assert ks_2samp(values(ours), values(theirs)).pvalue > 1e-3
        assert np.isclose(values(ours).mean(), values(theirs).mean(), rtol=0.05, atol=1)
        assert np.isclose(values(ours).std(), values(theirs).std(), rtol=0.1, atol=1)


def test_the_whole_image_is_taken_where_the_scale_says_so():
    drawn = draw(scale=(1.0, 1.0))
    assert (drawn.height == 224).all() and (drawn.width == 224).all() and (drawn.top == 0).all() and (drawn.left == 0).all()


# The operations


def resample_by_definition(image: np.ndarray, drawn: ViewParameters, n: int, side: int, is_zero_filled: bool) -> np.ndarray:
    """Find the place in the image of each pixel of the view: undo the flip, the crop and the rotation about the centre."""
    height, width = image.shape
    angle = math.radians(float(drawn.angle_deg[n]))
    out = np.empty((side, side))
    places = np.empty((2, side, side))
    for row in range(side):
        for column in range(side):
            y = side - 1 - row if drawn.is_flipped_y[n] else row
            x = side - 1 - column if drawn.is_flipped_x[n] else column
            y = float(drawn.top[n]) + (y + 0.5) / side * float(drawn.height[n]) - height / 2
            x = float(drawn.left[n]) + (x + 0.5) / side * float(drawn.width[n]) - width / 2
            # As y points down, a counter-clockwise rotation moves the right (x, 0) to the top (0, -x).
            places[0, row, column] = math.sin(angle) * x + math.cos(angle) * y + height / 2
            places[1, row, column] = math.cos(angle) * x - math.sin(angle) * y + width / 2
    out = ndimage.map_coordinates(image.astype(float), places - 0.5, order=1, mode="reflect")
    beyond = (places < 0).any(0) | (places[0] > height) | (places[1] > width)
    return np.where(beyond & is_zero_filled & bool(drawn.is_turned[n]), 0.0, out)


@pytest.mark.parametrize("size", [(224, 224), (70, 120)])
@pytest.mark.parametrize("is_zero_filled", [True, False])
def test_turning_cropping_and_flipping_equal_the_definition(size, is_zero_filled):
    pixels = images(12, size).unsqueeze(1).float() / 255
    drawn = draw(12, size=size, seed=3)
    found = resample(pixels, drawn, 48, is_zero_filled)
    assert found.shape == (12, 1, 48, 48) and drawn.is_turned.any() and not drawn.is_turned.all()
    for n in range(12):
        expected = resample_by_definition(pixels[n, 0].numpy(), drawn, n, 48, is_zero_filled)
        wrong = np.abs(found[n, 0].numpy() - expected) > 1e-3
        assert wrong.sum() <= 2  # a pixel may lie on the very border


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_and_flips_equal_numpy(turns):
    pixels = images(2, (64, 64)).unsqueeze(1).float()
    for flip_x in (False, True):
        for flip_y in (False, True):
            changes = {"angle_deg": torch.full((2,), 90.0 * turns), "is_turned": torch.ones(2, dtype=torch.bool),
                       "is_flipped_x": torch.tensor([flip_x] * 2), "is_flipped_y": torch.tensor([flip_y] * 2)}  # fmt: skip
            found = resample(pixels, unchanged(2, (64, 64), **changes), 64, True)
            expected = torch.rot90(pixels, turns, (2, 3))
            expected = expected.flip([dim for dim, flip in ((3, flip_x), (2, flip_y)) if flip])
            assert torch.allclose(found, expected, atol=0.02)


def test_a_crop_is_resized_as_torchvision_does_it():
    pixels = images(3).unsqueeze(1).float() / 255
    crop = {name: torch.full((3,), value) for name, value in (("top", 20.0), ("left", 55.0), ("height", 60.0), ("width", 75.0))}
    found = resample(pixels, unchanged(3, (224, 224), **crop), 96, True)
    expected = tf.functional.resized_crop(pixels, 20, 55, 60, 75, [96, 96], antialias=False)
    assert torch.allclose(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-4)  # theirs ends at the crop's edge


def test_small_views_average_instead_of_skipping_pixels():
    checkers = torch.from_numpy(np.indices((224, 224)).sum(0) % 2 * 255).to(torch.uint8)[None]
    calm = AugmentationParams(rotation_share=0, brightness=0, contrast=0, blur_share=0, noise_share=0)
    view = BatchAugmentation((ViewSpec(1, 56, (1.0, 1.0)),), calm, 0.0, 1.0)(checkers, 0)[0]
    assert (view - 0.5).abs().max() < 1e-4
    expected = images(1).float().view(1, 56, 4, 56, 4).mean((2, 4)) / 255
    unflipped = calm.model_copy(update={"flip_share": 0.0})
    view = BatchAugmentation((ViewSpec(1, 56, (1.0, 1.0)),), unflipped, 0.0, 1.0)(images(1), 0)[0]
    assert torch.allclose(view[:, 0], expected, atol=1e-4)


def test_jitter_equals_torchvision_in_either_order():
    view = images(20, (64, 64)).unsqueeze(1).float() / 255
    drawn = draw(20, seed=5)
    found = jitter_(view.clone(), drawn)
    assert drawn.is_contrast_first.any() and not drawn.is_contrast_first.all()
    for n in range(20):
        expected = view[n]
        steps = [(tf.functional.adjust_brightness, drawn.brightness[n]), (tf.functional.adjust_contrast, drawn.contrast[n])]
        for change, factor in reversed(steps) if drawn.is_contrast_first[n] else steps:
            expected = change(expected, float(factor))
        assert torch.allclose(found[n], expected, atol=1e-6)


def test_blur_equals_scipy():
    view = images(6, (60, 75)).unsqueeze(1).float() / 255
    sigma = torch.tensor([0.1, 0.5, 0.0, 1.3, 2.0, 0.9])
    found = blur_(view.clone(), sigma)
    for n, value in enumerate(sigma.tolist()):
        expected = view[n, 0].double().numpy()
        if value:
            expected = ndimage.gaussian_filter(expected, value, mode="mirror", radius=math.ceil(4 * value))
        assert np.abs(found[n, 0].numpy() - expected).max() < 1e-5


def test_blur_is_near_pillows_and_fits_tiny_views():
    pixels = cells((96, 96), 1)
    for sigma in (1.0, 2.0):
        theirs = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))).astype(float)
        found = blur_(torch.from_numpy(pixels / 255).float()[None, None], torch.tensor([sigma]))[0, 0].numpy() * 255
        assert np.abs(found - theirs)[8:-8, 8:-8].max() < 5
    tiny = torch.rand(2, 1, 5, 5)
    assert torch.allclose(blur_(tiny.clone(), torch.tensor([2.0, 0.0]))[1], tiny[1])


def test_noise_has_the_variance_drawn_and_leaves_the_others():
    view = torch.full((6, 1, 200, 200), 0.5)
    variance = torch.tensor([0.0, 1e-5, 1e-4, 0.0, 3e-5, 1e-2])
    found = add_noise_(view.clone(), variance, 1)
    assert torch.equal(found[[0, 3]], view[[0, 3]])
    for n in (1, 2, 4, 5):
        assert np.isclose(float(found[n].var()), float(variance[n]), rtol=0.03)
        assert abs(float(found[n].mean()) - 0.5) < 4 * math.sqrt(float(variance[n]) / 40_000)
        assert kstest((found[n] - 0.5).flatten() / variance[n].sqrt(), "norm").pvalue > 1e-3
    bright = add_noise_(torch.ones(1, 1, 50, 50), torch.tensor([1e-4]), 1)
    assert bright.max() == 1 and bright.min() < 1


# The whole augmentation


def reference_view(spec: ViewSpec):
    """Apply the published recipe to one PIL image: torchvision's transforms, with 8 bits between the steps."""

    def noise(image: torch.Tensor) -> torch.Tensor:
        if torch.rand(1) < 0.5:
            variance = math.exp(math.log(1e-5) + float(torch.rand(1)) * math.log(10))
            image = torch.clamp(image + torch.randn_like(image) * math.sqrt(variance), 0, 1)
        return image

    def blurred(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * float(torch.rand(1))))

    return tf.Compose([
        tf.RandomApply([tf.RandomRotation(180)], p=0.5),
        tf.RandomResizedCrop(spec.size_px, scale=spec.scale),
        tf.ColorJitter(0.4, 0.4),
        tf.RandomApply([blurred], p=0.5),
        tf.RandomHorizontalFlip(),
        tf.RandomVerticalFlip(),
        tf.ToTensor(),
        noise,
    ])  # fmt: skip


def statistics(views: torch.Tensor) -> dict[str, np.ndarray]:
    """Measure numbers of each view (n, 1, s, s) that its augmentation changes."""
    dark = (views < 0.02).double().mean((1, 2, 3))
    return {
        "mean": views.mean((1, 2, 3)).numpy(),
        "deviation": views.std((1, 2, 3)).numpy(),
        "sharpness": views.diff(dim=3).abs().mean((1, 2, 3)).numpy(),
        "dark": dark.numpy(),
        "bright": (views > 0.98).double().mean((1, 2, 3)).numpy(),
    }


@pytest.mark.parametrize("spec", [ViewSpec(1, 96, (0.2, 1.0)), ViewSpec(1, 96, (0.05, 0.14))])
def test_views_are_distributed_as_the_published_ones(test_data: Path, spec):
    pixels = np.asarray(Image.open(test_data / "em2d/cem_dataset_examples/occlusion/example4.tiff").convert("L"))[:224, :224]
    num = 600
    torch.manual_seed(0)
    one = reference_view(spec)
    theirs = statistics(torch.stack([one(Image.fromarray(pixels)) for _ in range(num)]))
    batch = torch.from_numpy(pixels.copy()).expand(num, -1, -1)
    ours = statistics(BatchAugmentation((spec,), PARAMS, 0.0, 1.0)(batch, 0)[0])
    for name, values in ours.items():
        error = math.sqrt((values.var() + theirs[name].var()) / num)
        # The published recipe shrinks without smoothing and rotates by nearest pixels, so its views are a little sharper.
        slack = 0.15 * theirs[name].mean() if name == "sharpness" else 0.02 * theirs[name].mean()
        assert abs(values.mean() - theirs[name].mean()) < 4 * error + slack, name
        assert np.isclose(values.std(), theirs[name].std(), rtol=0.25, atol=0.01), name


def test_one_seed_gives_one_result_whatever_happened_before():
    augment = BatchAugmentation((ViewSpec(2, 64, (0.2, 1.0)), ViewSpec(3, 32, (0.05, 0.14))), PARAMS, 0.5, 0.2)
    torch.manual_seed(1)
    first = augment(images(), 42)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = augment(images(), 42)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    assert [tuple(view.shape) for view in first] == [(8, 1, 64, 64)] * 2 + [(8, 1, 32, 32)] * 3
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    others = [*augment(images(), 43), *first[1:2]]
    assert not any(torch.equal(first[0], other) for other in others if other.shape == first[0].shape)


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_make_the_views_that_one_would_make(world):
    augment = BatchAugmentation((ViewSpec(2, 48, (0.2, 1.0)),), PARAMS, 0.5, 0.2)
    batch = images(80, (60, 60))
    whole = augment(batch, 7)
    per_rank = 80 // world
    parts = [augment(batch[n : n + per_rank], 7, first=n, num_all=80) for n in range(0, 80, per_rank)]
    for view, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(view, torch.cat(pieces))


def test_calm_parameters_only_normalise():
    calm = AugmentationParams(rotation_share=0, brightness=0, contrast=0, blur_share=0, flip_share=0, noise_share=0)
    (view,) = BatchAugmentation((ViewSpec(1, 224, (1.0, 1.0)),), calm, 0.57287, 0.12741)(images(4), 0)
    expected = (images(4).float()[:, None] / 255 - 0.57287) / 0.12741
    assert torch.allclose(view, expected, atol=1e-4)
    assert torch.allclose(normalised(images(4), 0.57287, 0.12741), expected, atol=1e-6)


def test_supervised_views_are_the_whole_image_turned_and_mirrored():
    white = torch.full((30, 224, 224), 255, dtype=torch.uint8)
    augment = BatchAugmentation((ViewSpec(1, 224, (1.0, 1.0)),), SUPERVISED, 0.0, 1.0)
    assert torch.allclose(augment(white, 0)[0], torch.ones(30, 1, 224, 224))  # no black corner
    zeros = BatchAugmentation((ViewSpec(1, 224, (1.0, 1.0)),), SUPERVISED.model_copy(update={"fill": "zeros"}), 0.0, 1.0)
    assert (zeros(white, 0)[0] == 0).any()
    assert draw(params=SUPERVISED, scale=(1.0, 1.0)).is_turned.all()


def test_images_come_through_unchanged():
    batch = images(4)
    before = batch.clone()
    BatchAugmentation(ONE_VIEW, PARAMS, 0.5, 0.2)(batch, 0)
    assert torch.equal(batch, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_gpu_makes_the_same_views_but_for_the_noise():
    quiet = PARAMS.model_copy(update={"noise_share": 0.0})
    augment = BatchAugmentation((ViewSpec(2, 224, (0.2, 1.0)),), quiet, 0.0, 1.0)
    for here, there in zip(augment(images(), 1), augment(images().cuda(), 1), strict=True):
        assert ((here - there.cpu()).abs() > 1e-3).double().mean() < 1e-4
    noisy = BatchAugmentation((ViewSpec(2, 224, (0.2, 1.0)),), PARAMS, 0.0, 1.0)
    assert all(torch.equal(*pair) for pair in zip(noisy(images().cuda(), 1), noisy(images().cuda(), 1), strict=True))


@pytest.mark.parametrize(
    "bad",
    [
        {"rotation_share": 1.1},
        {"brightness": -0.1},
        {"fill": "black"},
        {"blur_sigma_px": (0.0, 2.0)},
        {"noise_variance": (0, 1)},
    ],
)
def test_senseless_parameters_are_refused(bad):
    with pytest.raises(ValidationError):
        AugmentationParams(**bad)


def test_an_augmentation_needs_views_and_a_deviation():
    with pytest.raises(ValueError, match="std 0"):
        BatchAugmentation(ONE_VIEW, PARAMS, 0.5, 0)
    with pytest.raises(ValueError, match="0 kinds of views"):
        BatchAugmentation((), PARAMS, 0.5, 0.2)
