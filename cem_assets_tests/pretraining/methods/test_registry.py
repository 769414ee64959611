"""All methods: they learn, continue from a saved state bit by bit, and depend on nothing but their seed."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cem_assets.pretraining.methods.base import Method, feature_std
from cem_assets.pretraining.methods.params import params_for
from cem_assets.pretraining.methods.registry import METHODS, build_method
from cem_assets.pretraining.training.knn import encode_images, measure_knn
from cem_assets_tests.pretraining.batches import NUM_CLASSES, do_step, gratings, random_views, views_of

NUM = 320
LABELS = np.arange(NUM) % NUM_CLASSES
NUM_KNOWN = 2 * NUM_CLASSES
MARGIN = 0.5  # above chance, which is 1 / 8
GAIN = 0.05  # above the untrained encoder, which tells many of these stripes apart by chance
LOSS_SHARE = {"moco": 0.85, "swav": 0.6, "supervised": 0.6}

SMALL = {
    "moco": {"batch_size": 8, "queue": 16, "first_negatives": "random"},
    "swav": {"batch_size": 8, "queue": 16, "queue_start_epoch": 0, "freeze_iterations": 2},
    "supervised": {"batch_size": 8},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, because networks this small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def accuracy_from_two_examples(method: Method) -> float:
    """Give 160 unseen images the class of the nearest of 16 known ones, two of each class."""
    known, unseen = (gratings(LABELS[:num], 32, np.random.default_rng(seed)) for num, seed in ((NUM_KNOWN, 7), (160, 8)))
    norms = (method.params.mean, method.params.std)
    bank, queries = (encode_images(method.encoder, images, norms, torch.device("cpu")) for images in (known, unseen))
    return measure_knn(bank, LABELS[:NUM_KNOWN], queries, LABELS[:160], k=1).accuracy


@pytest.mark.soak  # stages/test_weights_learning.py shows it on a release; here on easier pictures, to tighter bounds
@pytest.mark.parametrize("name", METHODS)
def test_it_learns(name):
    """Views have nothing but the class in common, so a loss can only fall by finding it.

    MoCo's first epoch does not count: its queue then holds random directions, easily told from any key.
    """
    params = params_for(name, "smoke")
    method = build_method(params, "resnet18", NUM, NUM_CLASSES).to(memory_format=torch.channels_last)
    optimizer, generator = method.build_optimizer(), np.random.default_rng(0)
    untrained, steps_per_epoch = accuracy_from_two_examples(method), NUM // params.batch_size
    losses: list[list[float]] = []
    for epoch in range(params.epochs):
        losses.append([])
        for batch, rows in enumerate(np.split(generator.permutation(NUM), steps_per_epoch)):
            views, labels = views_of(LABELS[rows], params, generator), torch.from_numpy(LABELS[rows])
            step = epoch * steps_per_epoch + batch
            losses[-1].append(do_step(method, optimizer, views, labels, step, steps_per_epoch)[0])
    means = np.mean(losses, axis=1)
    first = means[1] if name == "moco" else means[0]
    assert means[-1] < LOSS_SHARE[name] * first, means
    found = accuracy_from_two_examples(method)
    assert found > 1 / NUM_CLASSES + MARGIN and found > untrained + GAIN, (found, untrained)


def steps(method: Method, optimizer: torch.optim.Optimizer, numbers: range) -> list[tuple[float, dict[str, float]]]:
    out = []
    for step in numbers:
        torch.manual_seed(step)  # of dropout; the loop keeps the generator's state
        out.append(do_step(method, optimizer, random_views(method.params, 8, step), torch.arange(8) % 4, step, 3))
    return out


@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_from_its_state_bit_by_bit(name):
    def build() -> tuple[Method, torch.optim.Optimizer]:
        method = build_method(params_for(name, "smoke", **SMALL[name]), "resnet18", 40, 4)
        return method, method.build_optimizer()

    whole, optimizer = build()
    expected = steps(whole, optimizer, range(6))
    first, first_optimizer = build()
    begun = steps(first, first_optimizer, range(3))
    file = io.BytesIO()
    torch.save({"method": first.state_dict(), "optimizer": first_optimizer.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    second, second_optimizer = build()
    with torch.no_grad():  # the state must replace everything
        for tensor in (*second.parameters(), *second.buffers()):
            tensor.zero_()
    second.load_state_dict(state["method"])
    second_optimizer.load_state_dict(state["optimizer"])
    assert begun + steps(second, second_optimizer, range(3, 6)) == expected
    final = second.state_dict()
    assert all(torch.equal(value, final[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_weights_depend_on_the_seed_alone_and_nothing_else_is_drawn_from(name):
    def state(seed: int) -> dict[str, torch.Tensor]:
        return build_method(params_for(name, "smoke", seed=seed), "resnet18", 100, 4).state_dict()

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = state(5)
    assert torch.equal(torch.rand(3), expected)
    again, other = state(5), state(6)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    weights = [key for key, value in first.items() if key.endswith("weight") and value.ndim > 1]
    assert weights and not any(torch.equal(first[key], other[key]) for key in weights)


@pytest.mark.parametrize("name", METHODS)
def test_a_dataset_smaller_than_a_batch_is_refused_where_a_queue_depends_on_it(name):
    if name == "supervised":
        assert build_method(params_for(name, "smoke"), "resnet18", 1, 4).num_samples == 1
        return
    with pytest.raises(ValueError, match="the dataset has 31 patches and batch_size is 32"):
        build_method(params_for(name, "smoke"), "resnet18", 31)


@pytest.mark.parametrize("name", METHODS)
def test_efficientnet_learns_by_every_method(name):
    method = build_method(params_for(name, "smoke", **SMALL[name]), "efficientnet_b0", 40, 4)
    optimizer = method.build_optimizer()
    before = [parameter.detach().clone() for parameter in method.encoder.parameters()]
    assert np.isfinite(steps(method, optimizer, range(1))[0][0])
    moved = [not torch.equal(old, new) for old, new in zip(before, method.encoder.parameters(), strict=True)]
    assert np.mean(moved) > 0.9


def test_feature_std_is_large_for_even_directions_and_nothing_for_one():
    features = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert float(feature_std(features)) == pytest.approx(1 / 8, rel=0.02)
    assert float(feature_std(torch.ones(10, 64))) < 1e-7
