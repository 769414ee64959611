"""Tests of the pretraining benchmark: it runs on a CPU, and both of its pipelines deliver the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("perf", reason="the benchmarks are in the repository, not in its packages")

from cem_assets.pixels.batch import Batch
from cem_assets.pixels.reader import BatchStream
from cem_assets.pretraining.methods.params import views
from perf import training
from perf.per_image_pipeline import per_image_loader
from perf.step_profile import bound_by
from perf.training import COMPARED, METHODS, SIDES, Input, Stopwatch, case_of, make_input, median_ratio

_ROOT = Path(training.__file__).parents[1]
_RUN = """
import json, sys
from perf.training import main
main(["--method", "moco", "--device", "cpu", "--size", "tiny", "--seconds", "0.1", "--out", sys.argv[1]])
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Input]:
    root = tmp_path_factory.mktemp("shards")
    made = {}
    for method in METHODS:
        (folder := root / method).mkdir()
        made[method] = make_input(folder, case_of(method, "tiny"))
    return made


def test_the_script_runs_on_a_cpu_without_dagster_and_mlflow(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(out)],
        cwd=_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "torch" in loaded
    assert not loaded & {"dagster", "mlflow"}
    report = json.loads(out.read_text())
    assert set(report["images_per_second"]) == set(SIDES)
    assert all(speed > 0 for speed in report["images_per_second"].values())
    for ours, peer in COMPARED:  # of the one turn that this size has
        ratio = report["turns"][ours][0] / report["turns"][peer][0]
        assert report["ratios"][f"{ours} / {peer}"] == pytest.approx(ratio)
    assert not report["is_measured_on_gpu"]
    assert 0 < report["input_bytes"] < 50e6
    assert 0 <= report["reading_wait_share"] < 1
    sections = ["reading wait", "copy to the device", "augmentation", "forward", "backward", "optimiser"]
    assert list(report["section_ms"]) == sections
    assert "convolution" in report["profile"]
    assert "[augmentation]" in report["profile"]


@pytest.mark.parametrize("method", METHODS)
def test_both_pipelines_deliver_the_same_images_labels_and_shapes(method: str, inputs: dict[str, Input]) -> None:
    case, data = case_of(method, "tiny"), inputs[method]
    size, num = case.params.batch_size, 3
    augmentation = case.make_views()
    ours = list(BatchStream(data.source, data.batches[:num]))
    rows = np.concatenate(data.batches[:num]).tolist()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer = list(per_image_loader(data.cells, rows, size, num_workers=0))
    assert sum(len(batch.images) for batch in ours) == sum(len(found[0]) for found, _ in peer) == num * size
    for batch, (found, labels) in zip(ours, peer, strict=True):
        assert batch.labels.tolist() == labels.tolist()
        made = augmentation(torch.from_numpy(batch.images), 0)
        assert [view.shape for view in made] == [view.shape for view in found]
        assert {view.dtype for view in (*made, *found)} == {torch.float32}
        assert len(made) == sum(spec.num for spec in views(case.params))


@pytest.mark.parametrize("method", METHODS)
def test_views_of_both_pipelines_are_of_one_distribution(method: str, inputs: dict[str, Input]) -> None:
    case, data = case_of(method, "tiny"), inputs[method]
    rows = np.arange(data.source.num_rows).repeat(4)
    pixels, _ = data.source.read_rows(rows)
    ours = case.make_views()(torch.from_numpy(pixels), 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer, _ = next(iter(per_image_loader(data.cells, rows.tolist(), len(rows), num_workers=0)))
    for spec in views(case.params):
        mine, other = (torch.cat([view for view in found if view.shape[-1] == spec.size_px]) for found in (ours, peer))
        # Of 256 views and more, whose means deviate by about 1 from each other: the deviation of the mean is 0.06.
        scale = float(other.std())
        assert float(mine.mean()) == pytest.approx(float(other.mean()), abs=0.2 * scale)
        assert float(mine.std()) == pytest.approx(scale, rel=0.1)
        assert float(mine.flatten(1).std(1).mean()) == pytest.approx(float(other.flatten(1).std(1).mean()), rel=0.12)


def test_full_size_is_the_preset_of_one_gpu_with_its_queue_in_use() -> None:
    found = {method: case_of(method, "full") for method in METHODS}
    assert {method: case.arch for method, case in found.items()} == {
        "moco": "resnet50",
        "swav": "resnet50",
        "supervised": "efficientnet_b0",
    }
    crops = {method: [(spec.num, spec.size_px) for spec in case.params.crops] for method, case in found.items()}
    assert crops == {"moco": [(2, 224)], "swav": [(2, 224), (6, 96)], "supervised": [(1, 224)]}
    assert {(case.params.batch_size, case.params.dtype) for case in found.values()} == {(256, "bfloat16")}
    assert found["swav"].params.queue_start_epoch == 0


def test_the_stopwatch_leaves_out_the_warm_up_and_stops_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("perf.training.time.perf_counter", lambda: now[0])
    watch = Stopwatch(seconds=10.0)
    for step, (at, is_over) in enumerate([(100.0, False), (101.0, False), (106.0, False), (112.0, True)], 1):
        now[0] = at
        assert watch.should_stop() == is_over
        watch.progress(step, 99)
    assert [(at, step) for at, step, _ in watch.marks] == [(101.0, 2), (106.0, 3), (112.0, 4)]


def test_the_stopwatch_counts_waits_and_closes_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    now, closed = [0.0], []
    monkeypatch.setattr("perf.training.time.perf_counter", lambda: now[0])
    batch = Batch(0, np.zeros(1, np.int64), np.zeros((1, 2, 2), np.uint8), np.zeros(1, np.int64))

    def slow():
        try:
            for _ in range(3):
                now[0] += 2.0
                yield batch
        finally:
            closed.append(True)

    watch = Stopwatch(seconds=1.0)
    stream = watch.watched(slow())
    for _ in range(2):
        next(stream)
        now[0] += 7.0  # the step
    stream.close()
    assert watch.waited == 4.0
    assert closed == [True]


@pytest.mark.parametrize(
    ("waiting", "busy", "said"),
    [(0.3, 0.99, "reading"), (0.0, 0.5, "launches kernels"), (0.0, 0.95, "backward (60% of a step)"), (0.0, None, "backward")],
)
def test_what_bounds_a_step_is_said(waiting: float, busy: float | None, said: str) -> None:
    assert said in bound_by(waiting, busy, {"reading wait": 70.0, "augmentation": 10.0, "forward": 40.0, "backward": 180.0})


def test_sides_are_compared_within_turns() -> None:
    # The machine was ten times slower in the second turn, and somebody else disturbed one side of the third.
    assert median_ratio([90.0, 9.0, 90.0], [100.0, 10.0, 10.0]) == pytest.approx(0.9)
