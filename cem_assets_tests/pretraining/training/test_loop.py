"""The training loop: learning, resuming bit by bit, stopping, intervals and bad losses; and the storage of its state."""

import io
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from cem_assets import encoders
from cem_assets.pixels.batch import Batch
from cem_assets.pretraining.data.epochs import epoch_order, num_batches, share
from cem_assets.pretraining.methods.base import Method
from cem_assets.pretraining.methods.params import MethodParams, MoCoParams, SupervisedParams, ViewSpec, params_for, views
from cem_assets.pretraining.methods.registry import build_method
from cem_assets.pretraining.training.checkpoints import (
    decode_state,
    encode_state,
    finished_epochs,
    restore_method,
)
from cem_assets.pretraining.training.loop import EpochResult, LoopSettings, train
from cem_assets.pretraining.views.augmentations import SUPERVISED, AugmentationParams, BatchAugmentation
from cem_assets_tests.pretraining.memory_checkpoints import MemoryCheckpoints

CPU = torch.device("cpu")
SIDE_PX = 32
EVERY_STEP = LoopSettings(checkpoint_interval_s=0)


def textures(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw two kinds of pictures: waves of a long and of a short period, in any direction, with noise."""
    generator = np.random.default_rng(seed)
    kinds = (np.arange(num) % 2).astype(np.int64)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    angle, phase = generator.uniform(0, np.pi, num), generator.uniform(0, 6, num)
    period = np.where(kinds == 0, 16.0, 4.0)[:, None, None]
    along = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    waves = np.sin(2 * np.pi * along / period + phase[:, None, None])
    return np.clip(128 + 70 * waves + generator.normal(0, 12, waves.shape), 0, 255).astype(np.uint8), kinds


class Stream:
    """A release in memory that records the requested epochs, and can end too early or be killed."""

    def __init__(self, num: int, params: MethodParams, *, killed_after: int | None = None, missing: int = 0) -> None:
        self.images, self.labels = textures(num)
        self.params = params
        self.killed_after = killed_after
        self.missing = missing
        self.asked: list[tuple[int, int]] = []
        self.num_open = 0

    def num_batches(self, epoch: int) -> int:
        return num_batches(len(self.images), self.params.batch_size)

    def __call__(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        self.asked.append((epoch, start_batch))
        order = epoch_order((len(self.images),), 0.0, self.params.seed, epoch)
        pieces = share(order, batch_size=self.params.batch_size, start=start_batch)
        self.num_open += 1
        try:
            for number, rows in enumerate(pieces[: len(pieces) - self.missing]):
                if self.killed_after is not None:
                    if self.killed_after == 0:
                        raise KeyboardInterrupt
                    self.killed_after -= 1
                yield Batch(start_batch + number, rows, self.images[rows], self.labels[rows])
        finally:
            self.num_open -= 1


class Tiny(Method):
    """A method small enough to run the loop hundreds of times, with dropout so that it draws random numbers."""

    def __init__(self, params: MethodParams, num_samples: int = 12, *, bad_step: int | None = None) -> None:
        super().__init__(params, "tiny", num_samples)
        with torch.random.fork_rng():
            torch.manual_seed(params.seed)
            self.network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
            self.last = nn.LazyLinear(1)
            self.last(self.network(torch.zeros(2, 1, SIDE_PX, SIDE_PX)))
        self.register_buffer("queue", torch.zeros(8))
        self.bad_step = bad_step
        self.draws: list[float] = []

    @property
    def encoder(self) -> nn.Module:
        return self.network

    def compute_loss(self, views, labels, step, epoch):
        self.draws.append(float(views[0].sum()) + float(torch.rand(())))
        out = self.last(self.network(views[0]))
        loss = (out - 1).square().mean() + self.queue.mean() * 0
        if step == self.bad_step:
            loss = loss * math.nan
        return loss, {"spread": out.detach().std(), **({"odd": torch.ones(())} if step % 2 else {})}

    def after_step(self, step: int) -> None:
        self.queue[step % 8] = step

    def build_optimizer(self, *, fused=None):
        return torch.optim.SGD(self.parameters(), self.params.lr, momentum=0.9, fused=fused)


def tiny_params(**changes: object) -> SupervisedParams:
    values = {"epochs": 2, "batch_size": 4, "lr": 1e-4, "seed": 3, "crops": (ViewSpec(1, SIDE_PX, (1, 1)),)}
    return SupervisedParams(**(values | changes))


def identity(images, generator_seed, first=0, num_all=None):
    return [images.float().unsqueeze(1) / 255]


def run_tiny(method: Tiny, stream: Stream | None = None, **options: object) -> list[EpochResult]:
    stream = stream or Stream(method.num_samples, method.params)
    return list(train(method, stream, stream.num_batches, identity, CPU, **options))


def without_times(results: list[EpochResult]) -> list[tuple[object, ...]]:
    return [(r.epoch, r.step, r.loss, r.learning_rate, r.indicators) for r in results]


def assert_equal_trees(found: object, expected: object, where: str = "state") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal_trees(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, item in enumerate(expected):
            assert_equal_trees(found[number], item, f"{where}[{number}]")
    else:
        assert found == expected, where


def final_state(store: MemoryCheckpoints) -> dict[str, object]:
    state = decode_state(store.data, "x")
    return {name: state[name] for name in ("state", "optimizer", "epoch", "batch", "step")}


# Real methods, small

METHODS = {
    "moco": {"crops": (ViewSpec(2, SIDE_PX, (0.3, 1)),), "queue": 16, "num_batch_splits": 2, "milestones": (1,)},
    "swav": {
        "crops": (ViewSpec(2, SIDE_PX, (0.3, 1)), ViewSpec(2, 16, (0.1, 0.3))),
        **{"prototypes": 12, "dim": 8, "hidden": 16, "queue": 16, "queue_start_epoch": 0, "freeze_iterations": 2},
    },
    "supervised": {"crops": (ViewSpec(1, SIDE_PX, (1, 1)),), "dropout": 0.3},
}


class SmallNetwork(nn.Module):
    """Two convolutions with BatchNorm, in the form of the networks of `build_encoder`."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.Conv2d(8, 16, 3, stride=2, bias=False)
        self.features = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(16), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(16, 10))

    def forward(self, images):
        return self.classifier(self.features(images).mean((2, 3)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, because networks this small are slower with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "small", SmallNetwork)
    monkeypatch.setitem(encoders._NUM_FEATURES, "small", 16)


def small_run(
    name: str,
    store: MemoryCheckpoints | None,
    *,
    arch: str = "small",
    epochs: int = 2,
    killed_after: int | None = None,
    settings: LoopSettings = EVERY_STEP,
    **options: object,
) -> list[EpochResult]:
    params = params_for(name, "smoke", **({"batch_size": 8, "epochs": epochs, "seed": 5} | METHODS[name]))
    stream = Stream(27, params, killed_after=killed_after)
    method = build_method(params, arch, 27, num_classes=2 if name == "supervised" else 0)
    augmentation = BatchAugmentation(
        views(params), SUPERVISED if name == "supervised" else AugmentationParams(), params.mean, params.std
    )
    results = []
    for result in train(method, stream, stream.num_batches, augmentation, CPU, store, settings, **options):
        torch.rand(7)  # what the caller draws between epochs must not matter
        results.append(result)
    return results


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_resumes_bit_by_bit(name):
    whole = MemoryCheckpoints()
    expected = small_run(name, whole, settings=LoopSettings())
    assert [(r.epoch, r.step) for r in expected] == [(1, 3), (2, 6)]
    for killed_after in (2, 3, 5):  # within the first epoch, at its end, within the second
        store = MemoryCheckpoints()
        with pytest.raises(KeyboardInterrupt):
            small_run(name, store, killed_after=killed_after)
        assert decode_state(store.data, "x")["step"] == killed_after
        torch.manual_seed(killed_after)  # the process that goes on is another one
        small_run(name, store, settings=LoopSettings())
        assert without_times(finished_epochs(store.data)) == without_times(expected)
        assert_equal_trees(final_state(store), final_state(whole))


def test_a_killed_run_of_a_residual_network_resumes_bit_by_bit():
    whole, store = MemoryCheckpoints(), MemoryCheckpoints()
    small_run("moco", whole, arch="resnet18", epochs=1, settings=LoopSettings())
    with pytest.raises(KeyboardInterrupt):
        small_run("moco", store, arch="resnet18", epochs=1, killed_after=2, settings=LoopSettings(0, sync_steps=2))
    assert decode_state(store.data, "x")["step"] == 2
    small_run("moco", store, arch="resnet18", epochs=1, settings=LoopSettings())
    assert without_times(finished_epochs(store.data)) == without_times(finished_epochs(whole.data))
    assert_equal_trees(final_state(store), final_state(whole))


def test_a_run_stopped_between_epochs_resumes_bit_by_bit():
    whole, store = MemoryCheckpoints(), MemoryCheckpoints()
    small_run("moco", whole)
    calls = iter([False, False, True])
    assert [r.epoch for r in small_run("moco", store, should_stop=lambda: next(calls))] == [1]
    assert [r.epoch for r in small_run("moco", store)] == [2]
    assert_equal_trees(final_state(store), final_state(whole))


def test_a_method_learns():
    params = params_for("supervised", "smoke", epochs=6, batch_size=16, seed=1, lr=2e-3, crops=(ViewSpec(1, SIDE_PX, (1, 1)),))
    stream = Stream(64, params)
    method = build_method(params, "small", 64, num_classes=2)
    augmentation = BatchAugmentation(views(params), SUPERVISED, params.mean, params.std)
    results = list(train(method, stream, stream.num_batches, augmentation, CPU))
    assert results[-1].loss < 0.5 * results[0].loss and results[-1].indicators["top1"] > 0.9


def test_half_precision_trains_and_compiled_networks_keep_the_names_of_their_weights():
    params = params_for("moco", "smoke", **({"batch_size": 8, "epochs": 1, "dtype": "bfloat16"} | METHODS["moco"]))
    method = build_method(params, "small", 16)
    names = list(method.state_dict())
    augmentation = BatchAugmentation(views(params), AugmentationParams(), params.mean, params.std)
    stream, settings = Stream(16, params), LoopSettings(compile_backend="eager")
    (result,) = train(method, stream, stream.num_batches, augmentation, CPU, settings=settings)
    assert math.isfinite(result.loss) and list(method.state_dict()) == names
    assert {value.dtype for value in method.state_dict().values()} == {torch.float32, torch.int64}


# The loop itself


def test_results_hold_means_rates_and_speed():
    ticks = iter(np.arange(0, 1000, 0.5).tolist())
    method = Tiny(tiny_params(epochs=1, lr=1e-9), 8)
    seen: list[tuple[int, int]] = []
    (result,) = run_tiny(
        method,
        progress=lambda *numbers: seen.append(numbers),
        evaluate=lambda epoch: {"knn": epoch / 4},
        clock=lambda: next(ticks),
    )
    assert (result.epoch, result.step, result.learning_rate, result.gpu_memory_bytes) == (1, 2, 1e-9, 0)
    assert seen == [(1, 2), (2, 2)] and result.indicators["knn"] == 0.25 and result.indicators["odd"] == 1
    assert result.seconds > 0 and result.images_per_second == pytest.approx(8 / result.seconds)
    method.eval()
    with torch.no_grad():  # nearly frozen, but with the statistics of batches and dropout: only the size can be compared
        assert result.loss == pytest.approx(float((method.last(method.network(torch.zeros(1, 1, 32, 32))) - 1).square()), rel=2)


def test_the_mean_loss_is_that_of_the_batches():
    losses = []

    class Told(Tiny):
        def compute_loss(self, views, labels, step, epoch):
            loss, indicators = super().compute_loss(views, labels, step, epoch)
            losses.append(float(loss.detach()))
            return loss, indicators

    (result,) = run_tiny(Told(tiny_params(epochs=1), 12))
    assert len(losses) == 3 and result.loss == pytest.approx(np.mean(losses), rel=1e-12)


def test_the_rate_follows_the_schedule_of_the_parameters():
    params = MoCoParams(
        epochs=4,
        batch_size=4,
        lr=0.001,
        milestones=(1, 3),
        lr_decay=0.1,
        queue=4,
        num_batch_splits=1,
        crops=(ViewSpec(2, 32, (1, 1)),),
    )
    assert [r.learning_rate for r in run_tiny(Tiny(params))] == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])


def test_every_step_has_its_own_random_numbers_whatever_the_process_drew_before():
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        method = Tiny(tiny_params())
        run_tiny(method)
        assert torch.equal(torch.get_rng_state(), before), "the caller's generator is as it was"
        draws.append(method.draws)
    assert draws[0] == draws[1] and len(set(draws[0])) == len(draws[0])
    other = Tiny(tiny_params(seed=4))
    run_tiny(other)
    assert not set(other.draws) & set(draws[0])


def test_augmentation_is_told_a_seed_of_the_step_and_the_place_in_the_whole_batch():
    told = []

    def augmentation(images, generator_seed, first=0, num_all=None):
        told.append((generator_seed, first, num_all))
        return identity(images, generator_seed)

    method = Tiny(tiny_params())
    stream = Stream(12, method.params)
    list(train(method, stream, stream.num_batches, augmentation, CPU))
    assert len({seed for seed, _, _ in told}) == 6
    assert {(first, num) for _, first, num in told} == {(0, 4)} and all(0 <= seed < 2**63 for seed, _, _ in told)


@pytest.mark.parametrize("stop_at", [1, 2, 4, 5])
def test_a_stopped_run_keeps_its_state_closes_its_stream_and_goes_on(stop_at):
    whole, store = MemoryCheckpoints(), MemoryCheckpoints()
    expected = run_tiny(Tiny(tiny_params()), checkpoint=whole)
    steps: list[int] = []
    stream = Stream(12, tiny_params())
    method = Tiny(tiny_params())
    first = run_tiny(
        method,
        stream,
        checkpoint=store,
        progress=lambda step, _: steps.append(step),
        should_stop=lambda: len(steps) + 1 == stop_at,
    )
    assert steps == list(range(1, stop_at + 1)) and stream.num_open == 0
    assert decode_state(store.data, "x")["step"] == stop_at
    resumed = Stream(12, tiny_params())
    rest = run_tiny(Tiny(tiny_params()), resumed, checkpoint=store)
    assert resumed.asked[0] == (stop_at // 3, stop_at % 3), "the stream begins where it was left"
    assert without_times([*first, *rest]) == without_times(expected)
    assert_equal_trees(final_state(store), final_state(whole))


def test_the_interval_of_checkpoints_is_kept_by_the_clock():
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock, saved_at = Clock(), []

    class Store(MemoryCheckpoints):
        def save(self, data: bytes) -> None:
            super().save(data)
            saved_at.append((clock.now, decode_state(data, "x")["step"]))

    def stream(epoch: int, start: int) -> Iterator[Batch]:
        for batch in Stream(80, tiny_params())(epoch, start):
            clock.now += 10.0
            yield batch

    settings = LoopSettings(checkpoint_interval_s=35)
    method = Tiny(tiny_params(epochs=1), 80)
    list(train(method, stream, lambda epoch: 20, identity, CPU, Store(), settings, clock=clock))
    assert saved_at == [(40.0, 4), (80.0, 8), (120.0, 12), (160.0, 16), (200.0, 20)]
    saved_at.clear()
    method = Tiny(tiny_params(epochs=1), 80)
    settings = LoopSettings(checkpoint_interval_s=35, sync_steps=8)
    list(train(method, stream, lambda epoch: 20, identity, CPU, Store(), settings, clock=clock))
    assert [step for _, step in saved_at] == [8, 16, 20], "looked up every 8 steps and at the end"


def test_a_run_killed_after_an_epochs_last_batch_only_finishes_it():
    store = MemoryCheckpoints()

    def evaluate(epoch: int) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tiny(Tiny(tiny_params()), checkpoint=store, settings=EVERY_STEP, evaluate=evaluate)
    stream = Stream(12, tiny_params())
    results = run_tiny(Tiny(tiny_params()), stream, checkpoint=store, evaluate=lambda epoch: {"knn": 1.0})
    assert stream.asked == [(1, 0)] and [r.epoch for r in results] == [1, 2]
    assert without_times(results) == without_times(run_tiny(Tiny(tiny_params()), evaluate=lambda epoch: {"knn": 1.0}))


def test_a_finished_run_does_nothing_and_goes_on_with_more_epochs():
    store = MemoryCheckpoints()
    first = run_tiny(Tiny(tiny_params(epochs=2)), checkpoint=store)
    method = Tiny(tiny_params(epochs=2))
    assert run_tiny(method, checkpoint=store) == []
    assert_equal_trees(method.state_dict(), decode_state(store.data, "x")["state"])
    more = run_tiny(Tiny(tiny_params(epochs=4)), checkpoint=store)
    assert [r.epoch for r in more] == [3, 4] and [r.step for r in more] == [9, 12]
    at_once = run_tiny(Tiny(tiny_params(epochs=4)))
    assert without_times([*first, *more]) == without_times(at_once)
    assert [r.epoch for r in finished_epochs(store.data)] == [1, 2, 3, 4]


@pytest.mark.parametrize(("sync_steps", "kept_step"), [(1, 4), (4, 4), (100, 3)])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(sync_steps, kept_step):
    store, stream = MemoryCheckpoints(), Stream(12, tiny_params(epochs=4))
    settings = LoopSettings(checkpoint_interval_s=0, sync_steps=sync_steps)
    with pytest.raises(ValueError, match=f"loss of step 5 is not finite.*the checkpoint of step {kept_step} was kept"):
        run_tiny(Tiny(tiny_params(epochs=4), bad_step=4), stream, checkpoint=store, settings=settings)
    assert stream.num_open == 0
    whole = MemoryCheckpoints()
    run_tiny(Tiny(tiny_params(epochs=4)), checkpoint=whole)
    run_tiny(Tiny(tiny_params(epochs=4)), checkpoint=store)  # what was kept leads where the good run leads
    assert_equal_trees(final_state(store), final_state(whole))


def test_a_bad_loss_before_any_checkpoint_says_so():
    with pytest.raises(ValueError, match="the loss of step 1 is not finite. Training stopped; no checkpoint was kept yet"):
        run_tiny(Tiny(tiny_params(), bad_step=0), checkpoint=MemoryCheckpoints())


def test_weights_that_are_not_finite_are_never_kept():
    class Poisoned(Tiny):
        def after_step(self, step: int) -> None:
            if step == 4:
                with torch.no_grad():
                    self.last.weight[0, 0] = math.inf

    store = MemoryCheckpoints()
    with pytest.raises(ValueError, match="weights are not finite after step 5.*the checkpoint of step 4 was kept"):
        run_tiny(Poisoned(tiny_params()), checkpoint=store, settings=EVERY_STEP)
    assert decode_state(store.data, "x")["step"] == 4


@pytest.mark.parametrize(
    ("changes", "num_samples", "message"),
    [
        ({"lr": 0.02}, 12, "lr is 0.0001, expected 0.02"),
        ({"seed": 4, "weight_decay": 0.1}, 12, "weight_decay is 0.0, expected 0.1; seed is 3, expected 4"),
        ({}, 16, "num_samples is 12, expected 16"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes, num_samples, message):
    store = MemoryCheckpoints()
    run_tiny(Tiny(tiny_params()), checkpoint=store)
    data = store.data
    with pytest.raises(ValueError, match=f"of another run: {message}"):
        run_tiny(Tiny(tiny_params(**changes), num_samples), checkpoint=store)
    assert store.data == data


def test_a_checkpoint_of_another_network_is_refused():
    store = MemoryCheckpoints()
    run_tiny(Tiny(tiny_params()), checkpoint=store)
    method = Tiny(tiny_params())
    method.last = nn.Linear(5, 1)
    with pytest.raises(ValueError, match=r"of another run: .*last.weight"):
        restore_method(method, store.data)
    assert restore_method(Tiny(tiny_params()), store.data) == (2, 6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the checkpoint cannot be read"),
        (b"PK\x03\x04 nothing", "the checkpoint cannot be read"),
        (encode_state({"format": 99}), "the checkpoint has format 99; expected 1"),
        (encode_state({"format": 1, "epoch": 0}), "the checkpoint has no method, arch"),
        (encode_state([1]), "the checkpoint has format 'list'"),
    ],
)
def test_checkpoints_that_cannot_be_read_are_refused(data, message):
    store = MemoryCheckpoints()
    store.save(data)
    with pytest.raises(ValueError, match=message):
        run_tiny(Tiny(tiny_params()), checkpoint=store)


def test_a_stream_that_ends_early_or_has_other_batches_is_told():
    with pytest.raises(RuntimeError, match="the stream of epoch 1 ended after 2 of 3 batches"):
        run_tiny(Tiny(tiny_params()), Stream(12, tiny_params(), missing=1))
    with pytest.raises(ValueError, match="a batch has 6 images on each of 1 processes; expected 4 over all"):
        run_tiny(Tiny(tiny_params()), Stream(12, tiny_params(batch_size=6)))
    with pytest.raises(ValueError, match="an epoch has no batch"):
        run_tiny(Tiny(tiny_params()), Stream(3, tiny_params()))
    with pytest.raises(ValueError, match="checkpoint_interval_s is -1 and sync_steps None"):
        LoopSettings(checkpoint_interval_s=-1)


def test_epochs_may_differ_by_a_batch_and_schedules_keep_to_epochs():
    crops = (ViewSpec(2, SIDE_PX, (1, 1)),)
    params = MoCoParams(epochs=3, batch_size=4, lr=1e-4, milestones=(2,), queue=4, num_batch_splits=1, crops=crops)
    lengths = [2, 3, 2]

    def stream(epoch: int, start: int) -> Iterator[Batch]:
        images, labels = textures(12)
        for number in range(start, lengths[epoch]):
            rows = np.arange(4) + 4 * number
            yield Batch(number, rows, images[rows], labels[rows])

    results = list(train(Tiny(params), stream, lambda epoch: lengths[epoch], identity, CPU))
    assert [r.step for r in results] == [2, 5, 7]
    assert [r.learning_rate for r in results] == pytest.approx([1e-4, 1e-4, 1e-5])


# The storage of the state


def test_state_is_plain_tensors_and_values():
    view = torch.arange(1000.0)[::100]
    state = {
        "a": [1, (2.5, None, "x", True)],
        3: {"w": nn.Parameter(torch.ones(2))},
        "view": view,
        "bf": torch.ones(1).bfloat16(),
    }
    data = encode_state(state)
    assert len(data) < 4000, "a view does not drag its whole storage along"
    assert_equal_trees(decode_state(data, "x"), state)
    assert_equal_trees(torch.load(io.BytesIO(data), weights_only=True), state)
    assert encode_state(state) == data


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {"b": np.float64(1)}]}, r"state.a\[1\].b is a float64"),
        ({"a": {2.5: 1}}, "state.a has a key of type float"),
        ({"a": object()}, "state.a is a object"),
        ({"a": {1, 2}}, "state.a is a set"),
    ],
)
def test_other_objects_are_not_written(state, message):
    with pytest.raises(TypeError, match=message):
        encode_state(state)
