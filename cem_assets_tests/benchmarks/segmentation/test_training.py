"""The training loop: learning, losses, the schedule of torch, resuming bit by bit, stopping, bad losses, bad checkpoints."""

import io
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from cem_assets.benchmarks.segmentation.augmentation import CropSampler
from cem_assets.benchmarks.segmentation.model import build_unet
from cem_assets.benchmarks.segmentation.params import SegmentationParams
from cem_assets.benchmarks.segmentation.training import (
    SegmentationResult,
    one_cycle,
    restore_model,
    results_of,
    segmentation_loss,
    train_segmentation,
)
from cem_assets.encoders import build_encoder
from cem_assets.errors import DataError
from cem_assets_tests.benchmarks.segmentation.models import TinyNet, tiny_params

CPU = torch.device("cpu")


class Memory:
    """A checkpoint store in memory that keeps every state."""

    def __init__(self, data: bytes | None = None) -> None:
        self.kept = [] if data is None else [data]

    def save(self, data: bytes) -> None:
        self.kept.append(data)

    def load(self) -> bytes | None:
        return self.kept[-1] if self.kept else None


def discs(num: int = 6, side: int = 48) -> list[tuple[np.ndarray, np.ndarray]]:
    """Make images of a bright disc on a dark noisy background."""
    generator, found = np.random.default_rng(0), []
    y, x = np.mgrid[:side, :side]
    for _ in range(num):
        row, column = generator.uniform(10, side - 10, 2)
        mask = ((y - row) ** 2 + (x - column) ** 2 < 120).astype(np.uint8)
        found.append((np.clip(70 + 90 * mask + generator.normal(0, 15, mask.shape), 0, 255).astype(np.uint8), mask))
    return found


def run(model, params: SegmentationParams, **options) -> list[SegmentationResult]:
    return list(train_segmentation(model, CropSampler(discs(), params), params, CPU, **options))


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize("iters", [1, 2, 3, 4, 7, 100, 1000])
def test_the_schedule_is_torchs_one_cycle(iters):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.003)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=iters)
    for step in range(iters):
        group = optimizer.param_groups[0]
        assert one_cycle(step, iters, 0.003) == pytest.approx((group["lr"], group["betas"][0]), rel=1e-9, abs=1e-15)
        optimizer.step()
        if step + 1 < iters:
            scheduler.step()


def test_losses_are_the_known_ones():
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 5, generator=generator), torch.randint(0, 3, (2, 4, 5), generator=generator).byte()
    one = tiny_params()
    expected = functional.binary_cross_entropy_with_logits(logits[:, :1], (masks > 0).float()[:, None])
    torch.testing.assert_close(segmentation_loss(logits[:, :1], (masks > 0).byte(), one), expected)
    for weights in ((), (0.1, 1.0, 3.0)):
        three = tiny_params(num_classes=3, class_weights=weights)
        theirs = functional.cross_entropy(logits, masks.long(), torch.tensor(weights) if weights else None)
        torch.testing.assert_close(segmentation_loss(logits, masks, three), theirs)
    nothing = tiny_params(num_classes=3, class_weights=(0.0, 1.0, 1.0))
    assert float(segmentation_loss(logits, torch.zeros_like(masks), nothing)) == 0


def test_training_lowers_the_loss_and_evaluates_when_asked():
    seen = []

    def evaluate(model: torch.nn.Module) -> dict[int, float]:
        seen.append(model.training)
        return {1: 0.25 * len(seen)}

    steps = []
    params = tiny_params(iters=80, lr=0.03, weight_decay=0.0)
    results = run(
        TinyNet(), params, evaluate_every=30, evaluate=evaluate, progress=lambda done, total: steps.append((done, total))
    )
    assert [result.step for result in results] == [30, 60, 80]
    assert [result.iou for result in results] == [{1: 0.25}, {1: 0.5}, {1: 0.75}]
    assert seen == [False, False, False]
    assert results[-1].loss < 0.6 * results[0].loss
    assert results[-1].learning_rate == one_cycle(79, 80, 0.03)[0]
    assert steps == [(done, 80) for done in range(1, 81)]


def test_a_loss_is_the_mean_since_the_result_before():
    each = run(TinyNet(), tiny_params(), evaluate_every=1)
    pairs = run(TinyNet(), tiny_params(), evaluate_every=5)
    assert [result.loss for result in pairs] == pytest.approx(
        [np.mean([r.loss for r in each[part]]) for part in (slice(0, 5), slice(5, 10), slice(10, 12))], rel=1e-9
    )


@pytest.mark.parametrize(("kind", "stop_after"), [("tiny", 1), ("tiny", 4), ("tiny", 5), ("unet", 2)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(kind, stop_after):
    params = (
        tiny_params(iters=7, has_noise=True) if kind == "tiny" else tiny_params(iters=4, batch_size=2, finetune_layer="layer4")
    )

    def network() -> torch.nn.Module:
        if kind == "tiny":
            return TinyNet(dropout=0.3)
        torch.manual_seed(0)
        return build_unet("resnet18", 1, build_encoder("resnet18", in_channels=1).state_dict(), "layer4")

    whole = network()
    expected = run(whole, params, evaluate_every=3)
    calls, store, first = [], Memory(), network()

    def should_stop() -> bool:
        calls.append(None)
        torch.rand(len(calls))  # other code may draw from the process's random generator
        return len(calls) == stop_after

    begun = run(first, params, evaluate_every=3, checkpoint=store, should_stop=should_stop)
    resumed = network()
    with torch.no_grad():
        resumed.get_parameter(next(iter(dict(resumed.named_parameters())))).zero_()  # the checkpoint restores it
    ended = run(resumed, params, evaluate_every=3, checkpoint=store)
    assert begun + ended == expected
    assert ended
    assert same(resumed, whole)
    assert results_of(store.kept[-1]) == expected
    assert run(network(), params, evaluate_every=3, checkpoint=store) == []


def test_a_finished_checkpoint_gives_its_weights_for_a_test_with_other_rules():
    store, model, params = Memory(), TinyNet(), tiny_params()
    run(model, params, checkpoint=store)
    other = TinyNet(seed=9)
    content = restore_model(other, store.kept[-1], params.model_copy(update={"threshold": 0.9, "test_mode": "stack"}))
    assert same(model, other)
    assert content["step"] == 12


def test_state_is_kept_at_results_and_at_intervals():
    ticks = iter(range(1000))
    store = Memory()
    run(
        TinyNet(), tiny_params(iters=10), checkpoint=store, evaluate_every=5, clock=lambda: next(ticks), checkpoint_interval_s=3
    )
    steps = [torch.load(io.BytesIO(data), weights_only=True)["step"] for data in store.kept]
    assert {5, 10} < set(steps)
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("iters", [4, 12])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(iters):
    params, store = tiny_params(), Memory()
    sampler = CropSampler(discs(), params)

    def bad(step: int) -> tuple[np.ndarray, np.ndarray]:
        images, masks = sampler(step)
        return (images * np.float32(math.nan) if step == 7 else images), masks

    results = train_segmentation(TinyNet(), bad, params, CPU, store, evaluate_every=iters)
    with pytest.raises(
        DataError, match=r"loss of step 8 is not finite.*" + ("step 4 was kept" if iters == 4 else "no checkpoint")
    ):
        list(results)
    assert len(store.kept) == (1 if iters == 4 else 0)
    if store.kept:
        assert restore_model(TinyNet(), store.kept[-1], params)["step"] == 4


def test_weights_that_are_not_finite_are_never_kept():
    params, store, model = tiny_params(iters=2), Memory(), TinyNet()

    def evaluate(model: torch.nn.Module) -> dict[int, float]:
        model.last.bias.data.fill_(math.inf)
        return {1: 0.0}

    with pytest.raises(DataError, match="weights are not finite after step 2"):
        run(model, params, evaluate=evaluate, checkpoint=store)
    assert store.kept == []


def checkpoint(**changes: object) -> bytes:
    store = Memory()
    run(TinyNet(), tiny_params(**changes), checkpoint=store)
    return store.kept[-1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: checkpoint(lr=0.1, iters=13), "iters is 13, expected 12; lr is 0.1, expected 0.003"),
        (lambda: checkpoint()[:-200], "cannot be read"),
        (lambda: b"", "cannot be read"),
        (lambda: _saved({"format": 2}), "expected format 1"),
        (lambda: _saved([1, 2]), "holds list"),
        (lambda: _saved({"format": 1, "model": CropSampler}), "cannot be read"),  # loading it would run code
    ],
)
def test_a_checkpoint_that_is_damaged_or_of_another_run_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        run(TinyNet(), tiny_params(), checkpoint=Memory(data()))


def _saved(value: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def test_a_checkpoint_of_another_network_is_refused():
    data = checkpoint()
    with pytest.raises(DataError, match="size mismatch for last.weight"):
        restore_model(TinyNet(num_classes=2), data, tiny_params())


def test_an_interval_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="evaluate_every is 0"):
        run(TinyNet(), tiny_params(), evaluate_every=0)
