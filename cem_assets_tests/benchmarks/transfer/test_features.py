"""Features of images, and steps on tables of features, are compared with plain definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cem_assets.benchmarks.transfer.features.extraction import FeatureParams, extract_features, planes_of_image
from cem_assets.benchmarks.transfer.profiles import (
    fuse,
    replicate_correlations,
    standardise,
    standardise_by_controls,
    treatment_means,
)
from cem_assets.encoders import build_encoder


class Mean(nn.Module):
    """An encoder whose features are known: the mean and the standard deviation of every input channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)


def small_encoder(in_channels=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def some_images(num=5, channels=2, side=20, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (num, channels, side, side), dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stretched_channels_are_those_of_the_training_images(dtype):
    image = some_images(1, 3, 40, dtype)[0] // 3
    image[2] = 7  # no contrast
    found = planes_of_image(image, FeatureParams())
    assert found.dtype == np.float32
    for plane, channel in zip(found, image, strict=True):
        low, high = np.percentile(channel, (0.1, 99.9))
        assert np.allclose(plane, np.clip((channel - low) / max(high - low, 1e-9), 0, 1), atol=1e-6)
    merged = planes_of_image(image, FeatureParams(preprocessing="merge"))
    assert merged.shape == (1, 40, 40) and np.allclose(merged[0], found.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_as_they_are_keep_the_range_of_their_type(dtype):
    image = some_images(1, 2, 10, dtype)[0]
    assert np.allclose(planes_of_image(image, FeatureParams(is_normalised=False)), image / np.iinfo(dtype).max)


@pytest.mark.parametrize(
    ("preprocessing", "is_normalised", "width"),
    [("concat", True, 4), ("concat", False, 4), ("merge", True, 2), ("merge", False, 2)],
)
def test_four_ways_have_known_features(preprocessing, is_normalised, width):
    images = some_images(3, 2, 16)
    params = FeatureParams(preprocessing, is_normalised, norms=(0.5, 0.25), side_px=16, batch_size=2)
    found = extract_features(Mean(), images, params)
    assert found.shape == (3, width) and found.dtype == np.float32
    for image, row in zip(images, found, strict=True):
        planes = (planes_of_image(image, params).astype(float) - 0.5) / 0.25
        expected = [number for plane in planes for number in (plane.mean(), plane.std(ddof=1))]
        assert np.allclose(row, expected, atol=1e-4)


def test_features_do_not_depend_on_how_images_arrive():
    images = some_images(7)
    encoder = small_encoder()
    params = FeatureParams(norms=(0.5, 0.2), side_px=24, batch_size=4)
    whole = extract_features(encoder, [images], params)
    singly = extract_features(encoder, iter(list(images)), params)
    in_pieces = extract_features(encoder, [images[:2], images[2], images[3:]], params)
    assert whole.shape == (7, 8) and np.array_equal(whole, singly) and np.array_equal(whole, in_pieces)


def test_images_of_other_sizes_are_resized_and_keep_their_place():
    images = [some_images(1, 2, side, seed=side)[0] for side in (12, 30, 30, 24)]
    encoder = small_encoder(3)
    together = extract_features(encoder, images, FeatureParams(side_px=24, batch_size=3))
    alone = np.concatenate([extract_features(encoder, [image], FeatureParams(side_px=24)) for image in images])
    assert np.allclose(together, alone, atol=1e-5)


def test_the_encoder_is_evaluated_and_left_as_it_was():
    encoder = small_encoder().train()
    encoder[1].eval()
    before = encoder[1].running_mean.clone()
    first = extract_features(encoder, some_images(), FeatureParams(norms=(0.5, 0.2), side_px=20))
    again = extract_features(encoder, some_images(), FeatureParams(norms=(0.5, 0.2), side_px=20))
    assert np.array_equal(first, again) and torch.equal(before, encoder[1].running_mean)
    assert [layer.training for layer in encoder] == [True, False, True, True, True]


def test_a_gray_plane_fits_an_encoder_of_three_channels_and_each_has_its_norm():
    image = some_images(1, 1, 12)
    params = FeatureParams("merge", is_normalised=False, norms=((0.1, 0.2, 0.3), (1.0, 2.0, 4.0)), side_px=12)
    encoder = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1))
    with torch.no_grad():
        encoder[0].weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    mean = image.mean() / 255
    assert np.allclose(
        extract_features(encoder, image, params), [[(mean - 0.1), (mean - 0.2) / 2, (mean - 0.3) / 4]], atol=1e-5
    )


def test_an_encoder_of_the_project_gives_its_features():
    torch.manual_seed(0)
    found = extract_features(build_encoder("efficientnet_b0"), some_images(2, 2, 32), FeatureParams(side_px=32))
    assert found.shape == (2, 2560) and np.isfinite(found).all()
    assert extract_features(Mean(), []).shape == (0, 0)


@pytest.mark.parametrize(
    ("images", "params", "message"),
    [
        ([np.zeros((4, 4), np.uint8)], FeatureParams(), r"image 0: found uint8 of shape \(4, 4\)"),
        ([np.zeros((1, 4, 4), np.float32)], FeatureParams(), "image 0: found float32"),
        ([np.zeros((1, 4, 4), np.uint8), np.zeros((1, 0, 4), np.uint8)], FeatureParams(), "image 1: found"),
        ([some_images(2, 2, 4), some_images(1, 3, 4)], FeatureParams(), "image 2 has 3 channels, those before 2"),
        ([some_images(1)], FeatureParams(norms=((0.5, 0.5), 0.2)), "for 1 channels; expected one positive"),
        ([some_images(1)], FeatureParams(norms=(0.5, 0.0)), "expected one positive deviation"),
        ([some_images(1)], FeatureParams(norms=(float("nan"), 1.0)), "features of 1 images are NaN"),
    ],
)
def test_what_gives_no_features_is_told(images, params, message):
    if "norms" not in repr(params) or params.norms == FeatureParams().norms:
        params = FeatureParams(norms=(0.5, 0.2), side_px=8)
    with pytest.raises(ValueError, match=message):
        extract_features(small_encoder(), images, params)


@pytest.mark.parametrize("bad", [{"preprocessing": "sum"}, {"side_px": 0}, {"batch_size": 0}])
def test_senseless_parameters_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        FeatureParams(**bad)


def test_standardised_by_the_training_set_alone():
    generator = np.random.default_rng(0)
    train, test = generator.normal(5, 3, (50, 4)).astype(np.float32), generator.normal(5, 3, (9, 4)).astype(np.float32)
    train[:, 2], test[0, 2] = 0.1, 8.0  # constant in the training set
    own, other = standardise(train, test)
    for column in (0, 1, 3):
        assert own[:, column].mean() == pytest.approx(0, abs=1e-9) and own[:, column].std() == pytest.approx(1)
        expected = (test[:, column] - train[:, column].mean(dtype=float)) / train[:, column].std(dtype=float)
        assert np.allclose(other[:, column], expected)
    assert not own[:, 2].any() and not other[:, 2].any()


def test_controls_of_the_own_plate_set_the_scale():
    features = np.array([[1.0], [3.0], [8.0], [10.0], [30.0], [20.0]])
    found = standardise_by_controls(features, list("aaabbb"), np.array([True, True, False, True, True, False]))
    assert np.allclose(found[:, 0], [-(0.5**0.5), 0.5**0.5, 6 / 2**0.5, -(0.5**0.5), 0.5**0.5, 0.0])
    with pytest.raises(ValueError, match=r"fewer than two controls: b \(1\), c \(0\)"):
        standardise_by_controls(features, list("aabbcc"), np.array([True, True, False, True, False, False]))


def test_replicates_agree_by_the_median_of_their_pairs():
    generator = np.random.default_rng(1)
    treatment = [f"t{n % 9}" for n in range(36)] + ["once"]  # four rows each, of which the first three count
    features = generator.normal(size=(37, 5))
    features[:, 0] = [int(name[1]) if name != "once" else 0 for name in treatment]
    found = replicate_correlations(features, treatment)
    first, second, third = features[:9], features[9:18], features[18:27]
    for column in range(1, 5):
        pairs = [np.corrcoef(a[:, column], b[:, column])[0, 1] for a, b in ((first, second), (first, third), (second, third))]
        assert found[column] == pytest.approx(np.median(pairs))
    assert found[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="0 of 10 treatments have 5 replicates"):
        replicate_correlations(features, treatment, 5)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 99))
def test_means_of_treatments_equal_those_of_each_alone(names, seed):
    features = np.random.default_rng(seed).normal(size=(len(names), 3))
    means, order = treatment_means(features, names)
    assert order == list(dict.fromkeys(names)) and means.shape == (len(order), 3)
    for name, row in zip(order, means, strict=True):
        assert np.allclose(row, features[np.array(names) == name].mean(axis=0))


def test_fused_features_weigh_alike():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(20, 3)) * 1000, generator.normal(size=(20, 2)).astype(np.float32)
    fused = fuse(first, second)
    assert fused.shape == (20, 5) and np.allclose(fused.std(axis=0), 1)
    assert np.array_equal(fused[:, 3:], standardise(second)[0])
    by_training = standardise(fused[:12], fused[12:])
    assert np.allclose(by_training[1][:, :3], standardise(first[:12], first[12:])[1])
    with pytest.raises(ValueError, match="20, 19 rows"):
        fuse(first, second[:19])


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="equal numbers of columns"):
        standardise(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="at least one training row"):
        standardise(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="2 treatments for 3 rows"):
        treatment_means(np.zeros((3, 2)), ["a", "b"])
