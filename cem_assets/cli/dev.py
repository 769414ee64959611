"""`make dev`: the Dagster UI on the default store, with MLflow beside it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cem_assets import environment
from cem_assets.cli.runs import dagster_home
from cem_assets.store.store import open_store
from cem_assets.tracking.mlflow import tracking_uri


def serve(port: int, mlflow_port: int, say: Callable[[str], None]) -> int:
    """Run Dagster's webserver and daemon, and an MLflow server, until one of them ends or Ctrl-C is pressed.

    Args:
        port: Port of the Dagster UI.
        mlflow_port: Port of MLflow, which is not started where MLFLOW_TRACKING_URI names a server.
        say: Takes lines for the person at the terminal.

    Returns:
        Exit status.
    """
    home = dagster_home()
    variables = {**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    processes = []
    uri = tracking_uri()
    if not uri.startswith("http"):
        address = f"http://127.0.0.1:{mlflow_port}"
        artifacts = Path(uri.removeprefix("sqlite:///")).parent / "artifacts"
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--artifacts-destination", str(artifacts),
            "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1",
        ]  # fmt: skip
        # MLflow's job workers serve its generative features, which are not used here, and would take 2 GB.
        quiet = {**variables, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        processes.append(subprocess.Popen(command, env=quiet, start_new_session=True))
        variables[environment.MLFLOW_TRACKING_URI.name] = address
        say(f"MLflow:  {address}")
    else:
        say(f"MLflow:  {uri}")
    say(f"Dagster: http://127.0.0.1:{port}  (store {open_store().url}, home {home})")
    command = [
        sys.executable, "-m", "dagster", "dev", "-m", "cem_assets.definitions", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    processes.append(subprocess.Popen(command, env=variables, start_new_session=True))
    try:
        return processes[-1].wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
