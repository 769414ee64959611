"""Feature maps and organelle masks: alignment, correlation and overlap, compared with the definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cem_assets.analyses.organelles.correlation import enlarged, layer_maps, measure_agreement
from cem_assets_tests.analyses.encoders import NORMS, random_resnet, tiny_images


def _random_case(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    shapes = [(5, 6), (4, 4), (5, 6)]
    # There are more channels than are enlarged at once.
    maps = [generator.normal(size=(70, *shape)).astype(np.float32) for shape in shapes]
    masks = [generator.random((shape[0] * 4, shape[1] * 4)) < 0.3 for shape in shapes]
    return maps, masks


@pytest.mark.parametrize("top_share", [0.005, 0.2, None])
def test_measures_agree_with_their_definitions(top_share: float | None) -> None:
    maps, masks = _random_case()
    found = measure_agreement(maps, masks, top_share)
    share = sum(m.sum() for m in masks) / sum(m.size for m in masks) if top_share is None else top_share
    assert found.top_share == pytest.approx(share)
    for channel in (0, 33, 64, 69):
        threshold = np.quantile(np.concatenate([item[channel].ravel() for item in maps]).astype(np.float64), 1 - share)
        intersection = union = 0
        for number, (item, mask) in enumerate(zip(maps, masks, strict=True)):
            wide = enlarged(item[channel : channel + 1], *mask.shape)[0]
            r = np.corrcoef(wide.ravel(), mask.ravel())[0, 1]
            assert found.correlations[number, channel] == pytest.approx(r, abs=1e-6)
            intersection += int(((wide > threshold) & mask).sum())
            union += int(((wide > threshold) | mask).sum())
        assert found.thresholds[channel] == pytest.approx(threshold)
        assert found.ious[channel] == pytest.approx(intersection / union)
    assert found.best_channel == found.correlations.mean(axis=0).argmax()
    assert found.best_iou == found.ious.max() == found.ious[found.best_iou_channel]


def test_a_channel_that_is_the_organelle_is_found() -> None:
    maps, masks = _random_case()
    for item, mask in zip(maps, masks, strict=True):
        mask[:, : mask.shape[1] // 2], mask[:, mask.shape[1] // 2 :] = True, False
        item[7] = mask[::4, ::4]
    found = measure_agreement(maps, masks, None)
    assert (found.best_channel, found.best_iou_channel) == (7, 7)
    assert found.best_correlation > 0.85 and found.held_out_correlation == pytest.approx(found.best_correlation)
    assert found.best_iou > 0.8
    # The threshold of the source is the highest value of the channel here, and nothing is above it.
    assert measure_agreement(maps, masks).ious[7] == 0


@pytest.mark.parametrize(("layer", "stride_px"), [("layer1", 4), ("layer3", 16)])
@pytest.mark.parametrize("side_px", [128, 138])
def test_maps_lie_where_what_they_answer_to_is(layer: str, stride_px: int, side_px: int) -> None:
    # The gradient shows the centre of a value's receptive field: the mean place of the pixels that it depends on.
    encoder = random_resnet().eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.ones_(module.weight)
        if isinstance(module, torch.nn.MaxPool2d):
            module.forward = lambda x: torch.nn.functional.avg_pool2d(x, 3, 2, 1)
    caught = []
    encoder.get_submodule(layer).register_forward_hook(lambda module, inputs, output: caught.append(output))
    pixels = torch.ones(1, 1, side_px, side_px, requires_grad=True)
    encoder(pixels)
    chosen = side_px // stride_px // 2
    maps = caught[0][0, :1]
    maps[0, chosen, chosen].backward()
    # Where the field is larger than the image, its centre is the centre of the part inside the image.
    along = pixels.grad[0, 0].abs().sum(dim=1).double()
    centre = float((along * torch.arange(side_px)).sum() / along.sum())
    spot = np.zeros(tuple(maps.shape), np.float32)
    spot[0, chosen, chosen] = 1
    peak = np.unravel_index(enlarged(spot, side_px, side_px)[0].argmax(), (side_px, side_px))
    assert peak == (chosen * stride_px, chosen * stride_px)
    assert abs(centre - peak[0]) < 0.2 * stride_px


def test_enlarging_by_hand_and_sizes_that_do_not_fit() -> None:
    wide = enlarged(np.array([[[0.0, 4.0]]], np.float32), 1, 7)
    assert wide[0, 0].tolist() == [0, 1, 2, 3, 4, 4, 4]
    with pytest.raises(ValueError, match="5 values along 224 px"):
        enlarged(np.zeros((1, 5, 5), np.float32), 224, 224)


def test_the_best_of_many_random_channels_is_not_best_on_other_images() -> None:
    gaps = [measure_agreement(*_random_case(seed)) for seed in range(6)]
    assert all(found.best_correlation > 0.03 for found in gaps)
    assert abs(np.mean([found.held_out_correlation for found in gaps])) < 0.05
    assert np.mean([found.best_correlation - found.held_out_correlation for found in gaps]) > 0.05


def test_a_constant_channel_correlates_with_nothing_and_one_image_holds_out_none() -> None:
    maps, masks = _random_case()
    maps[0][3] = 0.1
    found = measure_agreement(maps[:1], masks[:1])
    assert found.correlations[0, 3] == 0 and found.ious[3] == 0 and np.isnan(found.held_out_correlation)


def test_masks_that_do_not_fit_are_told_together() -> None:
    maps, masks = _random_case()
    with pytest.raises(ValueError, match="mask 0 is empty.*mask 1 is full.*mask 2 is uint8"):
        measure_agreement(maps, [masks[0] & False, masks[1] | True, masks[2].astype(np.uint8)])
    with pytest.raises(ValueError, match="3 images with maps and 2 masks"):
        measure_agreement(maps, masks[:2])
    with pytest.raises(ValueError, match="share above a threshold is 1.0"):
        measure_agreement(maps, masks, 1.0)


def test_features_are_no_maps() -> None:
    with pytest.raises(ValueError, match="layer '' gives shape"):
        layer_maps(random_resnet(), list(tiny_images(1)), NORMS, "")


def test_real_mitochondria_and_their_masks(test_data: Path) -> None:
    folder = test_data / "em2d/cem_dataset_examples/correlation"
    if not folder.is_dir():
        pytest.skip(f"the masks of cem-dataset are absent: {folder}")
    names = sorted(path.name for path in (folder / "images").glob("mito*.png"))
    assert len(names) == 5
    images, masks = [], []
    for name in names:
        with Image.open(folder / "images" / name) as image, Image.open(folder / "masks" / name) as mask:
            images.append(np.asarray(image.convert("L")))
            masks.append(np.asarray(mask) > 127)
    maps = layer_maps(random_resnet(3), images, NORMS, "layer1")
    found = measure_agreement(maps, masks, None)
    assert found.correlations.shape == (5, 64) and np.isfinite(found.correlations).all()
    # Mitochondria are darker than their surroundings in all five images, and even random filters tell dark from light.
    darkness = [
        np.corrcoef(-image.astype(float).ravel(), mask.ravel())[0, 1] for image, mask in zip(images, masks, strict=True)
    ]
    assert np.mean(darkness) > 0.1
    assert found.best_correlation > 0.1 and 0 < found.best_iou < 1
    # The masks of other images agree less with the maps.
    same = [number for number in range(5) if images[number].shape == (224, 224)]
    moved = [masks[same[(place + 1) % len(same)]] for place in range(len(same))]
    own = measure_agreement([maps[number] for number in same], [masks[number] for number in same], None)
    other = measure_agreement([maps[number] for number in same], moved, None)
    assert own.best_correlation > other.best_correlation
