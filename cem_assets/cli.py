"""`cem-assets`: the command line. Thin: every command calls one function of the package.

The only place that prints.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cem_assets import __version__

_SHOWN_NAMES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after the program's name; None takes the process's own.

    Returns:
        Exit status: 0 when all went well, 1 for a failure that was explained, 2 for a wrong call.
    """
    warnings.filterwarnings("ignore", category=Warning, module="dagster")
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    parser = _parser()
    call = parser.parse_args(arguments)
    if call.root:
        os.environ["CEM_ASSETS_ROOT"] = call.root
    logging.basicConfig(level=logging.INFO if call.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return int(call.run(call))
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        if call.verbose:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"cem-assets: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cem-assets: stopped; what was committed stays, run again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cem-assets", description="Raw microscopy to pretraining sets.")
    parser.add_argument("--version", action="version", version=f"cem_assets {__version__}")
    parser.add_argument("--root", help="the store: s3://bucket/prefix or a folder (default: CEM_ASSETS_ROOT)")
    parser.add_argument("--verbose", action="store_true", help="log more, and show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    ingest = commands.add_parser("ingest", help="take a folder with a dataset.toml (or source.toml) in, and run its chain")
    ingest.add_argument("folder", type=Path)
    ingest.add_argument("--name", help="name of the dataset instead of the one in dataset.toml")
    ingest.add_argument(
        "--until", default="releases", help="last stage: volumes, raw, deduplicated, scores, filtered, releases"
    )
    ingest.add_argument("--replace", action="store_true", help="replace a dataset of the same name by a new version")
    ingest.set_defaults(run=_ingest)

    demo = commands.add_parser("demo", help="the whole chain on a built-in phantom, and on the VNC stack where it can be had")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="look at the store, MLflow, GPU, disk and versions")
    doctor.set_defaults(run=_doctor)

    dev = commands.add_parser("dev", help="open the Dagster UI with MLflow beside it")
    dev.add_argument("--port", type=int, default=3000, help="of the Dagster UI")
    dev.add_argument("--mlflow-port", type=int, default=5000)
    dev.set_defaults(run=_dev)

    releases = commands.add_parser("releases", help="list the releases, or say what changed between two of them")
    releases.add_argument("first", nargs="?", help="version, such as v1")
    releases.add_argument("second", nargs="?", help="version to compare it with; default the newest")
    releases.set_defaults(run=_releases)

    export = commands.add_parser("export", help="write a release as the published data set's folders, tars or Parquet")
    export.add_argument("what", choices=["cem", "cytoimagenet"])
    export.add_argument("target", metavar="DIR|URL", help="a new folder; for cem also a URL such as s3://bucket/prefix")
    export.add_argument("--release", default="", help="version, such as v1 (default: the newest)")
    export.add_argument("--format", choices=["tiff-tree", "webdataset", "hf"], help="of cem (default: tiff-tree)")
    export.set_defaults(run=_export)

    weights = commands.add_parser("weights", help="list encoder weights; train or import, extend, stop them")
    weights.set_defaults(run=_weights)
    actions = weights.add_subparsers(metavar="ACTION")
    train = actions.add_parser("train", help="train or import; goes on where it was stopped, more epochs extend")
    train.add_argument("name", help="row of the catalogue")
    train.add_argument("--epochs", type=int, help="instead of the row's")
    train.add_argument("--release", default="", help="version or digest instead of the row's")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method")
    train.add_argument("--processes", type=int, default=0, help="default: one on each GPU, or one")
    train.add_argument("--device", default="auto")
    train.add_argument("--checkpoint-seconds", type=float, default=600.0, help="a killed training loses at most so much")
    train.set_defaults(run=_train_weights)
    stop = actions.add_parser("stop", help="ask a training to keep its state and end, wherever it runs")
    stop.add_argument("name")
    stop.set_defaults(run=_stop_weights)

    benchmark = commands.add_parser("benchmark", help="prepare benchmarks, score weights on them, compare, promote")
    benchmark.add_argument("--weights", nargs="+", default=[], help="names; a+b for fused features")
    benchmark.add_argument("--benchmarks", nargs="+", default=[], help="names")
    benchmark.add_argument("--iterations", nargs="+", type=int, default=[0], help="default: the benchmark's")
    benchmark.add_argument("--finetune", nargs="+", default=[""], help="none, layer4, ..., all; default: the benchmark's")
    benchmark.add_argument("--seeds", nargs="+", type=int, default=[42])
    benchmark.add_argument("--device", default="auto")
    benchmark.set_defaults(run=_benchmark)
    doings = benchmark.add_subparsers(metavar="ACTION")
    prepare = doings.add_parser("prepare", help="prepare the data of a benchmark")
    prepare.add_argument("name")
    prepare.add_argument("--folder", default="", help="where its files are")
    prepare.set_defaults(run=_prepare_benchmark)
    promote = doings.add_parser("promote", help="put weights before the gate")
    promote.add_argument("name", help="of the weights")
    promote.add_argument("--reason", default="", help="overrides the gate, and is recorded")
    promote.set_defaults(run=_promote)

    label = commands.add_parser("label", help="open a local page on which patches are labelled good or bad, by keyboard")
    label.add_argument("dataset")
    label.add_argument("--annotator", default="", help="your name, recorded with every answer (default: the login name)")
    label.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: that of the last session, or any)")
    label.add_argument("--by", choices=["uncertainty", "random"], default="uncertainty", help="which patches come first")
    label.add_argument("--no-browser", action="store_true", help="only print the address")
    label.set_defaults(run=_label)

    path = commands.add_parser("path", help="print the folder that holds the current content of an asset")
    path.add_argument("asset", help="such as filtered, raw, cem/releases")
    path.add_argument("partition", nargs="?", default="", help="dataset or release version")
    path.set_defaults(run=_path)
    return parser


def _ingest(call: Any) -> int:
    from cem_assets.ingest import ingest_folder, ingest_source, source_lines, summary_lines
    from cem_assets.storage.source_inbox import SOURCE_TOML
    from cem_assets.storage.store import open_store

    store = open_store()
    is_source = (call.folder / SOURCE_TOML).is_file()
    with StageBars() as bars:
        if is_source:
            outcome = ingest_source(store, call.folder, call.name, call.replace, bars)
        else:
            outcome = ingest_folder(store, call.folder, call.name, call.until, call.replace, bars)
    print("\n".join((source_lines if is_source else summary_lines)(store, outcome.dataset)))
    for message in outcome.problems:
        print(f"\nfailed: {message}", file=sys.stderr)
    return 1 if outcome.problems else 0


def _demo(call: Any) -> int:
    from cem_assets.demo import run_demo
    from cem_assets.storage.store import DEFAULT_ROOT

    with StageBars() as bars:
        for line in run_demo(call.root or DEFAULT_ROOT, bars):
            bars.close()
            print(line, flush=True)
    return 0


def _doctor(call: Any) -> int:
    from cem_assets.doctor import examine

    del call
    findings = examine()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = {True: "ok  ", False: "BAD ", None: "-   "}[finding.is_well]
        print(f"{mark} {finding.subject:{width}}  {finding.text}")
    return 1 if any(finding.is_well is False for finding in findings) else 0


def _dev(call: Any) -> int:
    from cem_assets.dev import serve

    return serve(call.port, call.mlflow_port, lambda line: print(line, flush=True))


def _releases(call: Any) -> int:
    from cem_assets.stages.cem_releases import list_releases
    from cem_assets.stages.release_changes import compare_releases
    from cem_assets.storage.store import open_store

    store = open_store()
    found = list_releases(store)
    if call.first is None:
        for release in found:
            counts, day = release.counts, str(release.run["finished"])[:10]
            where = store.url_of(release.folder)
            print(
                f"{release.inputs.partition:8} {day}  {counts['datasets']:4} datasets  {counts['patches']:10,} patches  {where}"
            )
        return 0
    second = call.second or found[-1].inputs.partition if found else call.second or ""
    changes = compare_releases(store, call.first, second)
    print(f"{call.first} -> {second}: {len(changes)} dataset(s) differ")
    for change in changes:
        why = f"  ({'; '.join(change.reasons)})" if change.reasons else ""
        print(f"  {change.kind:8} {change.dataset}: {len(change.added):+,} / {-len(change.removed):+,} patches{why}")
        for mark, names in (("+", change.added), ("-", change.removed)):
            shown = names[:_SHOWN_NAMES]
            print("".join(f"      {mark} {name}\n" for name in shown), end="")
            if len(names) > len(shown):
                print(f"      {mark} and {len(names) - len(shown):,} more")
    return 0


def _export(call: Any) -> int:
    from cem_assets.stages.cem_export import export_cem
    from cem_assets.stages.cyto_export import export_cytoimagenet
    from cem_assets.storage.store import open_store

    if call.what == "cem":
        with StageBars() as bars:
            done = export_cem(
                open_store(),
                call.target,
                call.release,
                call.format or "tiff-tree",
                lambda done, total: bars("patches", "", done, total),
            )
        print(
            f"{done.num_patches:,} patches of release {done.version} in {done.url}: {done.num_files:,} files "
            f"({done.num_kept:,} were there), {done.num_bytes:,} bytes"
        )
        return 0
    if call.format:
        raise ValueError("--format is for cem; CytoImageNet is exported as a folder of PNG files.")
    with StageBars() as bars:
        num = export_cytoimagenet(
            open_store(), Path(call.target), call.release, lambda done, total: bars("images", "", done, total)
        )
    print(f"{num:,} images in {call.target}")
    return 0


def _weights(call: Any) -> int:
    from cem_assets.storage.store import open_store
    from cem_assets.weights_commands import weights_lines

    del call
    print("\n".join(weights_lines(open_store())))
    return 0


def _train_weights(call: Any) -> int:
    from cem_assets.storage.store import open_store
    from cem_assets.weights_commands import parsed_settings, train_weights_row

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
    from cem_assets.storage.store import open_store
    from cem_assets.weights_commands import stop_training

    print("\n".join(stop_training(open_store(), call.name)))
    return 0


def _benchmark(call: Any) -> int:
    from cem_assets.benchmark_commands import Sweep, benchmark_lines, score_all
    from cem_assets.storage.store import open_store

    store = open_store()
    if not call.weights and not call.benchmarks:
        print("\n".join(benchmark_lines(store)))
        return 0
    if not (call.weights and call.benchmarks):
        raise ValueError("--weights and --benchmarks belong together; expected names of both.")
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
    from cem_assets.benchmark_commands import benchmark_lines, prepare
    from cem_assets.storage.store import open_store

    store = open_store()
    with StageBars() as bars:
        problems = prepare(store, call.name, call.folder, bars)
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    print("\n".join(line for line in benchmark_lines(store) if line.startswith(f"{call.name} ")))
    return 1 if problems else 0


def _promote(call: Any) -> int:
    from cem_assets.benchmark_commands import promote_weights
    from cem_assets.storage.store import open_store

    lines, is_promoted = promote_weights(open_store(), call.name, call.reason)
    print("\n".join(lines))
    return 0 if is_promoted else 1


def _label(call: Any) -> int:
    import getpass

    from cem_assets.storage.store import open_store
    from cem_assets.web.next_patches import Order
    from cem_assets.web.serving import serve_labelling

    has_screen = sys.stdout.isatty() and (sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)))
    serve_labelling(
        open_store(),
        call.dataset,
        call.annotator or getpass.getuser(),
        lambda line: print(line, flush=True),
        call.port,
        Order(call.by),
        has_screen and not call.no_browser,
    )
    return 0


def _path(call: Any) -> int:
    from cem_assets.readers import content_url

    print(content_url(call.asset, call.partition))
    return 0


class StageBars:
    """One progress bar for the stage at hand, drawn on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ("", "")

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, asset: str, partition: str, done: int, total: int) -> None:
        """Draw progress of a stage; a new stage closes the bar of the last one."""
        from tqdm import tqdm

        if self._stage != (asset, partition):
            self.close()
            self._stage = (asset, partition)
            name = f"{asset} {partition}".strip()
            self._bar = tqdm(total=total, desc=f"{name:40.40}", leave=True, file=sys.stderr, mininterval=0.5)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Finish the bar at hand."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ("", "")


if __name__ == "__main__":
    sys.exit(main())
