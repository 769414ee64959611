"""The whole platform as processes: code server, webserver, daemon and MLflow, on PostgreSQL and S3.

This is like a deployment, but without containers: each part is started, stopped and killed by itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LAUNCH = """
mutation($job: String!, $config: RunConfigData!, $tags: [ExecutionTag!]!, $assets: [AssetKeyInput!]) {
  launchRun(executionParams: {selector: {repositoryLocationName: "cem_assets", repositoryName: "__repository__",
    jobName: $job, assetSelection: $assets}, runConfigData: $config, executionMetadata: {tags: $tags}}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
RUNS = "{ runsOrError(limit: 500) { ... on Runs { results { runId jobName status tags { key value } startTime endTime } } } }"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, look: Callable[[], Any], seconds: float = 120, pause: float = 0.5) -> Any:
    """Wait until a function returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {seconds:.0f} s")
        time.sleep(pause)


@dataclass
class Stack:
    """The processes by name, and the settings they are started with."""

    folder: Path
    environment: dict[str, str]
    mlflow_uri: str
    artifacts: str
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {name: free_port() for name in ("code", "web", "mlflow")}
        home = self.folder / "home"
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_bytes((ROOT / "deploy/dagster.production.yaml").read_bytes())
        (self.folder / "workspace.yaml").write_text(
            "load_from:\n  - grpc_server:\n      host: 127.0.0.1\n"
            f"      port: {self.ports['code']}\n      location_name: cem_assets\n"
        )
        self.environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports['mlflow']}",
            "PYTHONPATH": str(ROOT),
            **self.environment,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['web']}"

    def start(self, *names: str) -> None:
        """Start the named parts, or all of them, and wait until they answer."""
        host = "127.0.0.1"
        workspace = str(self.folder / "workspace.yaml")
        commands = {
            "mlflow": ["mlflow", "server", "--backend-store-uri", self.mlflow_uri, "--artifacts-destination", self.artifacts,
                       "--host", host, "--port", str(self.ports["mlflow"]), "--workers", "1"],
            "code": ["dagster", "code-server", "start", "-m", "cem_assets.definitions", "-h", host,
                     "-p", str(self.ports["code"]), "--inject-env-vars-from-instance"],
            "daemon": ["dagster._daemon", "run", "-w", workspace],
            "web": ["dagster_webserver", "-h", host, "-p", str(self.ports["web"]), "-w", workspace],
        }  # fmt: skip
        for name in names or commands:
            with open(self.folder / f"{name}.log", "ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", *commands[name]], env=self.environment, cwd=self.folder,
                    stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            if name == "code":
                wait_for("the code server", lambda: self._listens("code"), 60)
        for name in names or commands:
            if name in ("mlflow", "web"):
                wait_for(name, lambda name=name: self._listens(name), 90)
        if "web" in (names or commands):
            wait_for("the code location", self._is_loaded, 60)

    def _listens(self, name: str) -> bool:
        assert self.processes[name].poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.ports[name])) == 0

    def _is_loaded(self) -> bool:
        try:
            found = self.graphql("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
        except (urllib.error.URLError, OSError):
            return False
        return bool(found["repositoriesOrError"].get("nodes"))

    def kill(self, name: str) -> None:
        """Kill a part and everything it started, as when a machine goes away."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_run_workers(self) -> int:
        """Kill the processes that execute runs, and return how many there were."""
        killed = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                if os.getpgid(int(folder.name)) == self.processes["code"].pid and b"multiprocessing" in command:
                    if b"resource_tracker" in command:
                        continue
                    os.kill(int(folder.name), signal.SIGKILL)
                    killed += 1
            except (FileNotFoundError, ProcessLookupError):
                continue
        return killed

    def stop(self) -> None:
        for process in self.processes.values():
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.processes = {}

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Query the webserver, as its pages do."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        for attempt in range(10):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    found = json.load(answer)
                break
            except urllib.error.HTTPError as error:  # its connection to the database was closed; a person would reload the page
                if error.code < 500 or attempt == 9:
                    raise
                time.sleep(1)
        assert "errors" not in found, found["errors"]
        return dict(found["data"])

    def launch(self, job: str, dataset: str = "", config: dict[str, Any] | None = None) -> str:
        """Launch a run; return its id."""
        tags = [{"key": "dagster/partition", "value": dataset}] if dataset else []
        answer = self.graphql(LAUNCH, job=job, config=config or {}, tags=tags)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def runs(self) -> list[dict[str, Any]]:
        """List the runs, newest first, tags as a dictionary."""
        found = self.graphql(RUNS)["runsOrError"]["results"]
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def memory_mib(self, name: str) -> float:
        status = Path(f"/proc/{self.processes[name].pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
