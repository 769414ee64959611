"""Commands for weights and their benchmarks: `cem-assets weights ...`, `cem-assets benchmark ...`."""

import argparse
import sys
from typing import Any

from cem_assets.cli.progress import StageBars
from cem_assets.errors import DataError


def add_training_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `weights` and `benchmark` to the command line."""
    weights = commands.add_parser("weights", help="list encoder weights; train, import, extend or stop them")
    weights.set_defaults(run=_weights)
    actions = weights.add_subparsers(metavar="ACTION")
    train = actions.add_parser("train", help="train or import weights; a stopped training continues, and more epochs extend it")
    train.add_argument("name", help="row of the catalogue")
    train.add_argument("--epochs", type=int, help="number of epochs instead of the row's")
    train.add_argument("--release", default="", help="version or digest of the release instead of the row's")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method")
    train.add_argument("--processes", type=int, default=0, help="number of processes (default: one for each GPU, or one)")
    train.add_argument("--device", default="auto")
    train.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=600.0,
        help="time between checkpoints; a killed training loses no more",
    )
    train.set_defaults(run=_train_weights)
    stop = actions.add_parser("stop", help="ask a training on any machine to save its state and end")
    stop.add_argument("name")
    stop.set_defaults(run=_stop_weights)

    benchmark = commands.add_parser("benchmark", help="prepare benchmarks, score weights on them, compare, promote")
    benchmark.add_argument("--weights", nargs="+", default=[], help="names of weights; a+b concatenates features")
    benchmark.add_argument("--benchmarks", nargs="+", default=[], help="names of benchmarks")
    benchmark.add_argument("--iterations", nargs="+", type=int, default=[0], help="training steps (default: the benchmark's)")
    benchmark.add_argument("--finetune", nargs="+", default=[""], help="none, layer4, ... or all (default: the benchmark's)")
    benchmark.add_argument("--seeds", nargs="+", type=int, default=[42])
    benchmark.add_argument("--device", default="auto")
    benchmark.set_defaults(run=_benchmark)
    doings = benchmark.add_subparsers(metavar="ACTION")
    prepare = doings.add_parser("prepare", help="prepare the data of a benchmark")
    prepare.add_argument("name")
    prepare.add_argument("--folder", default="", help="folder with its files")
    prepare.set_defaults(run=_prepare_benchmark)
    promote = doings.add_parser("promote", help="let the gate decide whether weights become the champion")
    promote.add_argument("name", help="name of the weights")
    promote.add_argument("--reason", default="", help="overrides the gate, and is recorded")
    promote.set_defaults(run=_promote)


def _weights(call: Any) -> int:
    from cem_assets.cli.weights_runs import weights_lines
    from cem_assets.store.store import open_store

    del call
    print("\n".join(weights_lines(open_store())))
    return 0


def _train_weights(call: Any) -> int:
    from cem_assets.cli.weights_runs import parsed_settings, train_weights_row
    from cem_assets.store.store import open_store

    params = parsed_settings(call.set) | ({"epochs": call.epochs} if call.epochs is not None else {})
    config = {
        "params": params,
        "release": call.release,
        "num_processes": call.processes,
        "device": call.device,
        "checkpoint_interval_s": call.checkpoint_seconds,
    }
    with StageBars() as bars:
        problems = train_weights_row(open_store(), call.name, config, bars)
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _stop_weights(call: Any) -> int:
    from cem_assets.cli.weights_runs import stop_training
    from cem_assets.store.store import open_store

    print("\n".join(stop_training(open_store(), call.name)))
    return 0


def _benchmark(call: Any) -> int:
    from cem_assets.cli.benchmark_runs import Sweep, benchmark_lines, score_all
    from cem_assets.store.store import open_store

    store = open_store()
    if not call.weights and not call.benchmarks:
        print("\n".join(benchmark_lines(store)))
        return 0
    if not (call.weights and call.benchmarks):
        raise DataError("--weights and --benchmarks belong together; give names for both of them.")
    sweep = Sweep(call.benchmarks, call.weights, call.iterations, call.finetune, call.seeds)
    has_failed = False
    with StageBars() as bars:
        for lines, problems in score_all(store, sweep, {"device": call.device}, bars):
            bars.close()
            print("\n".join(lines), flush=True)
            for problem in problems:
                has_failed = True
                print(f"failed: {problem}", file=sys.stderr)
    return 1 if has_failed else 0


def _prepare_benchmark(call: Any) -> int:
    from cem_assets.cli.benchmark_runs import benchmark_lines, prepare
    from cem_assets.store.store import open_store

    store = open_store()
    with StageBars() as bars:
        problems = prepare(store, call.name, call.folder, bars)
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    print("\n".join(line for line in benchmark_lines(store) if line.startswith(f"{call.name} ")))
    return 1 if problems else 0


def _promote(call: Any) -> int:
    from cem_assets.cli.benchmark_runs import promote_weights
    from cem_assets.store.store import open_store

    lines, is_promoted = promote_weights(open_store(), call.name, call.reason)
    print("\n".join(lines))
    return 0 if is_promoted else 1
