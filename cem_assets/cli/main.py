"""`cem-assets`: the command line. Every command calls one function of the package; only the modules of this folder print."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cem_assets import __version__, environment
from cem_assets.cli.analyses import add_analysis_commands
from cem_assets.cli.classifier import add_classifier_commands
from cem_assets.cli.pages import add_page_commands
from cem_assets.cli.progress import StageBars
from cem_assets.cli.releases import add_release_commands
from cem_assets.cli.training import add_training_commands
from cem_assets.errors import Fault, RunFailedError, fault_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after the program's name; None takes those of the process.

    Returns:
        Exit status: 0 for success, 1 for a failure, 2 for a wrong call.

    Raises:
        Exception: A bug of ours, with its traceback; all other errors are printed in words.
    """
    warnings.filterwarnings("ignore", category=Warning, module="dagster")
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    parser = _parser()
    call = parser.parse_args(arguments)
    if call.root:
        environment.export(environment.ROOT, call.root)
    logging.basicConfig(level=logging.INFO if call.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return int(call.run(call))
    except RunFailedError as error:
        print(f"cem-assets: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        fault = fault_of(error)
        if fault == Fault.bug:
            print("cem-assets: this is a bug; please report it with the traceback that follows", file=sys.stderr)
        if call.verbose or fault == Fault.bug:
            raise
        print(f"cem-assets: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cem-assets: stopped. What was committed stays; run the command again to continue", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cem-assets", description="Raw microscopy to pretraining sets.")
    parser.add_argument("--version", action="version", version=f"cem_assets {__version__}")
    parser.add_argument("--root", help="the store: s3://bucket/prefix or a folder (default: CEM_ASSETS_ROOT)")
    parser.add_argument("--verbose", action="store_true", help="log more, and show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    ingest = commands.add_parser("ingest", help="ingest a folder with a dataset.toml (or source.toml), and run its chain")
    ingest.add_argument("folder", type=Path)
    ingest.add_argument("--name", help="name of the dataset instead of the one in dataset.toml")
    ingest.add_argument(
        "--until", default="releases", help="last stage: volumes, raw, deduplicated, scores, filtered, releases"
    )
    ingest.add_argument("--replace", action="store_true", help="replace a dataset of the same name by a new version")
    ingest.set_defaults(run=_ingest)

    demo = commands.add_parser(
        "demo", help="run the whole chain on a built-in phantom, and on the VNC stack where it can be downloaded"
    )
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="check the store, MLflow, GPU, disk and versions")
    doctor.set_defaults(run=_doctor)

    dev = commands.add_parser("dev", help="open the Dagster UI with MLflow beside it")
    dev.add_argument("--port", type=int, default=3000, help="port of the Dagster UI")
    dev.add_argument("--mlflow-port", type=int, default=5000)
    dev.set_defaults(run=_dev)

    add_release_commands(commands)
    add_training_commands(commands)
    add_analysis_commands(commands)
    add_page_commands(commands)
    add_classifier_commands(commands)

    path = commands.add_parser("path", help="print the folder that holds the current content of an asset")
    path.add_argument("asset", help="such as filtered, raw, cem/releases")
    path.add_argument("partition", nargs="?", default="", help="dataset or release version")
    path.set_defaults(run=_path)
    return parser


def _ingest(call: Any) -> int:
    from cem_assets.cli.ingest import ingest_folder, ingest_source, source_lines, summary_lines
    from cem_assets.cytoimagenet.sources.inbox import SOURCE_TOML
    from cem_assets.store.store import open_store

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
    from cem_assets.cli.demo.run import run_demo

    with StageBars() as bars:
        for line in run_demo(call.root or environment.ROOT.default, bars):
            bars.close()
            print(line, flush=True)
    return 0


def _doctor(call: Any) -> int:
    from cem_assets.cli.doctor import examine

    del call
    findings = examine()
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = {True: "ok  ", False: "BAD ", None: "-   "}[finding.is_well]
        print(f"{mark} {finding.subject:{width}}  {finding.text}")
    return 1 if any(finding.is_well is False for finding in findings) else 0


def _dev(call: Any) -> int:
    from cem_assets.cli.dev import serve

    return serve(call.port, call.mlflow_port, lambda line: print(line, flush=True))


def _path(call: Any) -> int:
    from cem_assets.readers import content_url

    print(content_url(call.asset, call.partition))
    return 0
