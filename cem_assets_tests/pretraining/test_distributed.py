"""Two gloo processes: exchanges, training that gives both of them the same state, and a single process."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from cem_assets import encoders
from cem_assets.pixels.batch import Batch
from cem_assets.pretraining import distributed
from cem_assets.pretraining.data.epochs import epoch_order, num_batches, share
from cem_assets.pretraining.methods.base import Method
from cem_assets.pretraining.methods.params import MethodParams, params_for, views
from cem_assets.pretraining.methods.registry import build_method
from cem_assets.pretraining.training.checkpoints import decode_state, encode_state, finished_epochs
from cem_assets.pretraining.training.loop import EpochResult, LoopSettings, train
from cem_assets.pretraining.views.augmentations import AugmentationParams, BatchAugmentation
from cem_assets_tests.pretraining.memory_checkpoints import MemoryCheckpoints
from cem_assets_tests.pretraining.training import test_loop as single

CPU = torch.device("cpu")
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
RANKS = 2
NUM = 24


class SharedStream:
    """Gives each process its part of the same batches."""

    def __init__(self, params: MethodParams) -> None:
        self.images, self.labels = single.textures(NUM)
        self.params = params

    def num_batches(self, epoch: int) -> int:
        return num_batches(NUM, self.params.batch_size)

    def __call__(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        order = epoch_order((NUM,), 0.0, self.params.seed, epoch)
        rank, size = distributed.rank(), distributed.world_size()
        pieces = share(order, rank, size, batch_size=self.params.batch_size, start=start_batch)
        for number, rows in enumerate(pieces, start_batch):
            yield Batch(number, rows, self.images[rows], self.labels[rows])


def run(name: str, store: MemoryCheckpoints, **options: object) -> tuple[Method, list[EpochResult]]:
    params = params_for(name, "smoke", **({"batch_size": 8, "epochs": 2, "seed": 5} | single.METHODS[name]))
    method = build_method(params, "small", NUM, num_classes=2 if name == "supervised" else 0)
    stream = SharedStream(params)
    augmentation = BatchAugmentation(views(params), AugmentationParams(), params.mean, params.std)
    results = list(train(method, stream, stream.num_batches, augmentation, CPU, store, single.EVERY_STEP, **options))
    return method, results


def message_of(action: Callable[[], object]) -> str:
    try:
        action()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def exchanges(rank: int) -> dict[str, object]:
    """Collect what the exchanges give to this process."""
    mine = torch.tensor([rank + 1.0, 10.0 * rank])
    parameters = [nn.Parameter(torch.zeros(2, 3, 4, 4)) for _ in range(3)] + [nn.Parameter(torch.zeros(3).bfloat16())]
    for number in (0, 1):
        parameters[number].grad = torch.full((2, 3, 4, 4), float(rank + number))
    layout = torch.arange(96.0).reshape(2, 3, 4, 4).to(memory_format=torch.channels_last)
    parameters[1].grad = layout * (rank + 1)
    parameters[3].grad = torch.full((3,), rank * 2.0).bfloat16()
    distributed.average_gradients(parameters)
    module = nn.BatchNorm2d(2)
    with torch.no_grad():
        module.weight.fill_(rank)
        module.num_batches_tracked.fill_(rank + 5)
    distributed.copy_from_main(module)
    sent = {0: b"checkpoint" * 1000, 1: None}[rank]
    return {
        "who": (distributed.rank(), distributed.world_size(), distributed.is_main_process(), distributed.is_distributed()),
        "sum": distributed.sum_over_ranks(mine).tolist(),
        "max": distributed.max_over_ranks(mine.to(torch.int64)).tolist(),
        "gathered": [part.tolist() for part in distributed.gather_from_ranks(mine)],
        "mine": mine.tolist(),
        "gradients": [None if p.grad is None else p.grad.float().contiguous() for p in parameters],
        "is_channels_last": parameters[1].grad.is_contiguous(memory_format=torch.channels_last),
        "module": {name: value.tolist() for name, value in module.state_dict().items()},
        "bytes": distributed.bytes_from_main(sent, CPU) == b"checkpoint" * 1000,
        "no bytes": distributed.bytes_from_main(None, CPU) is None,
        "empty bytes": distributed.bytes_from_main(b"", CPU) == b"",
        "joined twice": message_of(lambda: distributed.process_group("cpu").__enter__()),
    }


def trainings(rank: int) -> dict[str, object]:
    """Train each method, stop one in the middle and resume it, and let one process alone have a bad loss and a stop."""
    out: dict[str, object] = {}
    for name in single.METHODS:
        torch.manual_seed(rank)  # what the processes drew before must not matter
        store = MemoryCheckpoints()
        method, results = run(name, store)
        out[name] = {"state": method.state_dict(), "results": single.without_times(results), "data": store.data}
        stopped = MemoryCheckpoints()
        calls = iter(range(100))
        run(name, stopped, should_stop=lambda calls=calls: rank == 1 and next(calls) == 3)  # within the second epoch
        out[name]["stopped at"] = decode_state(stopped.data, "x")["step"] if rank == 0 else None
        resumed, _ = run(name, stopped)
        out[name]["resumed"] = resumed.state_dict()
        out[name]["resumed results"] = single.without_times(finished_epochs(stopped.data)) if rank == 0 else None
        out[name]["interrupted data"] = stopped.data
    params = single.tiny_params()
    stream, bad = SharedStream(params), single.Tiny(params, NUM, bad_step=3 if rank == 1 else None)
    out["bad"] = message_of(lambda: list(train(bad, stream, stream.num_batches, single.identity, CPU, None)))
    return out


def work(rank: int, port: int, folder: str) -> None:
    """Run one process as torchrun starts it."""
    torch.set_num_threads(1)
    encoders.ENCODERS["small"], encoders._NUM_FEATURES["small"] = single.SmallNetwork, 16
    os.environ |= dict(zip(TORCHRUN, (str(rank), str(RANKS), str(rank), "127.0.0.1", str(port)), strict=True))
    with distributed.process_group("auto", timeout_s=120) as device:
        out = {"device": device.type, **exchanges(rank), **trainings(rank)}
    out["left"] = not torch.distributed.is_initialized()
    torch.save(out, Path(folder) / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(work, (port, str(folder)), nprocs=RANKS, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove torchrun's variables, and use one thread, which is enough for small networks."""
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(encoders.ENCODERS, "small", single.SmallNetwork)
    monkeypatch.setitem(encoders._NUM_FEATURES, "small", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_processes_know_each_other_and_leave_cleanly(both):
    for rank, out in enumerate(both):
        assert out["who"] == (rank, 2, rank == 0, True) and out["device"] == encoders.pick_device().type and out["left"]
        assert out["joined twice"].startswith("RuntimeError: this process has joined a process group already")
    assert not multiprocessing.active_children()


def test_exchanges_give_what_their_names_say_and_leave_their_arguments_alone(both):
    for rank, out in enumerate(both):
        assert (out["sum"], out["max"]) == ([3.0, 10.0], [2, 10])
        assert out["gathered"] == [[1.0, 0.0], [2.0, 10.0]] and out["mine"] == [rank + 1.0, 10.0 * rank]
        assert out["bytes"] and out["no bytes"] and out["empty bytes"]
        assert out["module"]["weight"] == [0.0, 0.0] and out["module"]["num_batches_tracked"] == 5


def test_gradients_are_averaged_whatever_their_layout_and_type(both):
    for out in both:
        first, second, missing, half = out["gradients"]
        assert torch.equal(first, torch.full((2, 3, 4, 4), 0.5)) and missing is None
        assert torch.equal(second, torch.arange(96.0).reshape(2, 3, 4, 4) * 1.5) and out["is_channels_last"]
        assert torch.equal(half, torch.ones(3))


@pytest.mark.parametrize("name", single.METHODS)
def test_two_processes_hold_the_same_weights_and_report_the_same(name, both):
    single.assert_equal_trees(both[1][name]["state"], both[0][name]["state"])
    assert both[0][name]["results"] == both[1][name]["results"]
    assert both[0][name]["data"] is not None and both[1][name]["data"] is None, "only the first keeps checkpoints"


@pytest.mark.parametrize("name", single.METHODS)
def test_two_processes_stopped_by_either_resume_bit_by_bit(name, both):
    assert both[0][name]["stopped at"] == 4
    for out in both:
        single.assert_equal_trees(out[name]["resumed"], both[0][name]["state"])
    assert both[0][name]["resumed results"] == both[0][name]["results"]


# The comparison has a tolerance, because sums over two processes are rounded differently.
@pytest.mark.parametrize("name", ["moco", "swav"])
def test_two_processes_are_one_of_the_whole_batch(name, both):
    method, results = run(name, MemoryCheckpoints())
    theirs = both[0][name]
    assert [r.loss for r in results] == pytest.approx([loss for _, _, loss, _, _ in theirs["results"]], rel=1e-4)
    for key, value in method.state_dict().items():
        # A bias before BatchNorm has no effect, so its gradient is rounding alone, which LARC scales up.
        if key in ("projection_head.0.bias", "projection_head.1.running_mean"):
            continue
        assert torch.allclose(value.float(), theirs["state"][key].float(), rtol=1e-3, atol=1e-4), key


def test_a_run_of_two_processes_goes_on_in_one(both):
    store = MemoryCheckpoints()
    store.save(both[0]["moco"]["data"])
    method, results = run("moco", store)
    assert results == []
    single.assert_equal_trees(method.state_dict(), both[0]["moco"]["state"])


def test_a_half_finished_epoch_of_two_processes_counts_rightly_in_one():
    """Turn the sums of two processes, one row for each, into those of one process."""
    store = MemoryCheckpoints()
    calls = iter(range(100))
    params = single.tiny_params(epochs=1)
    stream = SharedStream(params)
    settings = LoopSettings()

    def tiny_run(**options: object) -> list[EpochResult]:
        method = single.Tiny(params, NUM)
        return list(train(method, stream, stream.num_batches, single.identity, CPU, store, settings, **options))

    tiny_run(should_stop=lambda: next(calls) == 2)
    content = decode_state(store.data, "x")
    assert content["sums"].shape == (1, 3) and content["counts"]["loss"] == 3
    content["sums"] = torch.cat([content["sums"] - 1, content["sums"] + 1])
    untouched = store.data
    expected = tiny_run()
    store.save(encode_state(content))
    found = tiny_run()
    assert untouched != store.data and single.without_times(found) == single.without_times(expected)


def test_a_bad_loss_on_one_process_stops_both(both):
    for out in both:
        assert out["bad"].startswith("DataError: the loss of step 4 is not finite. Training stopped")


def test_one_process_needs_no_group():
    with distributed.process_group("cpu") as device:
        assert device == CPU and not distributed.is_distributed()
    tensor = torch.arange(3.0)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    assert torch.equal(distributed.sum_over_ranks(tensor), tensor) and torch.equal(distributed.max_over_ranks(tensor), tensor)
    assert [part.tolist() for part in distributed.gather_from_ranks(tensor)] == [[0.0, 1.0, 2.0]]
    assert distributed.bytes_from_main(b"x", CPU) == b"x" and distributed.bytes_from_main(None, CPU) is None
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    distributed.average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        ({"RANK": "0"}, "cpu", "sets RANK but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "MASTER_PORT": "1"}, "cpu", "sets WORLD_SIZE, MASTER_PORT but not RANK, LOCAL_RANK, MASTER_ADDR"),
        (dict.fromkeys(TORCHRUN, "2"), "cuda:0", "several processes cannot share the device 'cuda:0'"),
        (dict.fromkeys(TORCHRUN, "1"), "cuda", "LOCAL_RANK is 1, but torch sees 1 GPUs"),
    ],
)
def test_what_cannot_be_joined_is_told(variables, device, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=message), distributed.process_group(device):
        pass
    assert not distributed.is_distributed()


def test_variables_of_other_software_do_not_make_a_group(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with distributed.process_group("cpu"):
        assert not distributed.is_distributed()
