"""The command behind `make bench` and `make bench-quick`: which benchmarks it begins, and what it leaves behind."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("perf", reason="the benchmarks are in the repository, not in its packages")

from perf import __main__ as bench
from perf.report import to_json
from perf.timing import Measured


class Machine:
    """A machine on which every benchmark takes as long, and one of them may fail."""

    def __init__(self, seconds_each: float, failing: str = "") -> None:
        self.now, self.seconds_each, self.failing = 0.0, seconds_each, failing
        self.begun: list[tuple[float, str, bool]] = []

    def monotonic(self) -> float:
        return self.now

    def run_alone(self, name: str, is_quick: bool) -> tuple[list[dict], float, str]:
        self.begun.append((self.now, name, is_quick))
        self.now += self.seconds_each
        row = to_json(Measured(f"work of {name}", "things/s", 3.0, 2.0, "a peer", 0))
        return ([], self.seconds_each, "it broke") if name == self.failing else ([row], self.seconds_each, "")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")

    def run(machine: Machine, *arguments: str) -> tuple[int, dict]:
        monkeypatch.setattr(bench, "run_alone", machine.run_alone)
        monkeypatch.setattr(bench, "time", machine)
        monkeypatch.setattr(sys, "argv", ["perf", *arguments])
        status = bench.main()
        return status, json.loads((tmp_path / "results" / "latest.json").read_text())

    return run


def test_a_quick_bench_ends_in_time_on_a_slow_machine_and_names_what_it_left_out(run, capsys):
    machine = Machine(60)
    status, report = run(machine, "--quick")
    begun = [name for _, name, _ in machine.begun]
    assert status == 0 and machine.now <= 300 and list(report["benchmarks"]) == begun and report["is_quick"]
    left_out = [name for name in bench.BENCHMARKS if name not in (*begun, *bench.WHOLE_ONLY)]
    assert left_out and f"no time left for {', '.join(left_out)}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("--quick", "chain", "ticks", "intake", "training", "explorer", "raw_table_s3")])
def test_nothing_that_is_asked_for_is_left_out(run, capsys, arguments):
    machine = Machine(200)
    run(machine, *arguments)
    assert [name for _, name, _ in machine.begun] == list(arguments[1:] or bench.BENCHMARKS)
    assert "no time left" not in capsys.readouterr().out


def test_one_that_fails_is_told_and_the_others_run(run, capsys):
    machine = Machine(1, failing="dedup")
    status, report = run(machine)
    assert status == 1 and len(machine.begun) == len(bench.BENCHMARKS)
    assert report["benchmarks"]["dedup"]["failure"] == "it broke" and "failed: it broke" in capsys.readouterr().out
    assert run(Machine(1), "dedup")[1]["benchmarks"].keys() == report["benchmarks"].keys(), "rows of the others stay"
