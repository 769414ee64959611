"""Figures of analyses: they are readable and small, and equal values give equal bytes."""

import io

import numpy as np
import pytest
from PIL import Image

from cem_assets.analyses.invariance.figures import firing_rates_png
from cem_assets.analyses.invariance.rates import FiringRates
from cem_assets.analyses.invariance.transformations import TRANSFORMATIONS
from cem_assets.analyses.occlusion.figures import occlusion_png
from cem_assets.analyses.occlusion.maps import OcclusionMap
from cem_assets.analyses.organelles.consensus import measure_consensus
from cem_assets.analyses.organelles.correlation import measure_agreement
from cem_assets.analyses.organelles.figures import agreement_png
from cem_assets.imaging.gallery import MAX_BYTES


def _open(data: bytes) -> np.ndarray:
    assert len(data) <= MAX_BYTES
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def _rates(name: str, level: float) -> FiringRates:
    strengths = TRANSFORMATIONS[name].strengths
    return FiringRates(name, strengths, np.full((len(strengths), 4), level), np.full(4, 0.01), 100)


def test_firing_rates_of_many_encoders_fit_and_are_drawn_alike_each_time() -> None:
    results = {f"weights $_{n} with a long name": {name: _rates(name, n / 12) for name in TRANSFORMATIONS} for n in range(12)}
    data = firing_rates_png(results, "firing rates")
    assert _open(data).min() < 100
    one = firing_rates_png({"a": {"blur": _rates("blur", 0.1)}}, "t")
    assert _open(one).shape[1] < _open(data).shape[1]
    assert one == firing_rates_png({"a": {"blur": _rates("blur", 0.1)}}, "t")
    assert one != firing_rates_png({"a": {"blur": _rates("blur", 0.9)}}, "t")
    with pytest.raises(ValueError, match="no firing rates"):
        firing_rates_png({"a": {}}, "t")


def test_silent_encoders_are_drawn_without_a_curve() -> None:
    silent = FiringRates("blur", (0.0, 1.0), np.full((2, 3), np.nan), np.zeros(3), 10)
    _open(firing_rates_png({"a": {"blur": silent}}, "t"))


def test_noisy_images_with_their_drops_still_fit() -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (224, 200), dtype=np.uint8) for _ in range(3)]
    maps = [
        OcclusionMap(np.arange(2), np.arange(2), np.zeros((2, 2)), generator.random((224, 200)) if n else np.zeros((224, 200)))
        for n in range(3)
    ]
    data = occlusion_png(images, {"a": maps, "b": maps[::-1]}, "drops")
    assert _open(data).std() > 10 and data == occlusion_png(images, {"a": maps, "b": maps[::-1]}, "drops")
    with pytest.raises(ValueError, match="b has 2 maps for 3 images"):
        occlusion_png(images, {"a": maps, "b": maps[:2]}, "drops")


def test_masks_and_their_channel() -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (64, 48), dtype=np.uint8) for _ in range(2)]
    masks = [image > 200 for image in images]
    maps = [generator.normal(size=(5, 8, 6)).astype(np.float32) for _ in images]
    agreement = measure_agreement(maps, masks)
    consensus = measure_consensus(maps, masks, agreement.correlations, 2)
    data = agreement_png(images, masks, maps, agreement, consensus, "mitochondria")
    assert _open(data).std() > 10 and data == agreement_png(images, masks, maps, agreement, consensus, "mitochondria")
    with pytest.raises(ValueError, match="1 images, 2 masks"):
        agreement_png(images[:1], masks, maps, agreement, consensus, "t")
    with pytest.raises(ValueError, match="differ in size"):
        agreement_png([images[0], images[1][:9]], masks, maps, agreement, consensus, "t")
