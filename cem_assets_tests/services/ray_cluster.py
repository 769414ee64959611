"""A real Ray cluster for the tests: several nodes of one machine, each with its own loopback address, that can be killed.

Ray is no dependency of the main environment. If this Python lacks it, `make install-ray` makes `.venv-ray` from its lock file,
which takes seconds with the cache of the main environment, and everything that uses Ray runs there.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_OBJECT_STORE_BYTES = 200 << 20


def find_python() -> tuple[Path | None, str]:
    """Return a Python that has Ray, installing it if necessary; or None and the reason why there is none."""
    if importlib.util.find_spec("ray"):
        return Path(sys.executable), ""
    if not (_ROOT / "Makefile").is_file() or not shutil.which("make"):
        return None, "Ray is not installed, and there is no checkout with make to install it from"
    done = subprocess.run(["make", "install-ray"], cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, f"Ray is not installed, and make install-ray failed: {done.stderr[-500:]}"
    return _ROOT / ".venv-ray/bin/python", ""


def _free_port() -> int:
    """Find a port below those that Ray gives to its workers (10002 to 19999)."""
    for port in range(6400, 6500):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 6400 and 6499 for Ray")


def processes_below(pid: int) -> list[int]:
    """List a process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def workers_below(pid: int) -> list[int]:
    """List the processes of a node that work on tasks at the moment."""
    found = []
    for one in processes_below(pid):
        try:
            title = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if title.startswith("ray::") and "IDLE" not in title:
            found.append(one)
    return found


@dataclass
class RayCluster:
    """Nodes by address; the first is the head, which the test never kills.

    Attributes:
        python: A Python that has Ray.
        folder: The folder for logs and sockets. Its path is short, because the names of sockets must be short.
        environment: Variables of every node, in addition to those that Ray needs.
    """

    python: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")))
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int = field(default_factory=_free_port)
    head: str = ""

    @property
    def address(self) -> str:
        return f"{self.head}:{self.port}"

    def client_environment(self) -> dict[str, str]:
        """The variables with which a driver finds the cluster."""
        return {"RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0"}

    def start(self, address: str, num_cpus: int) -> None:
        """Start a node; the first is the head."""
        command = [
            str(self.python.parent / "ray"),
            "start",
            "--block",
            "--node-ip-address",
            address,
            "--num-cpus",
            str(num_cpus),
        ]
        command += [
            "--object-store-memory",
            str(_OBJECT_STORE_BYTES),
            "--disable-usage-stats",
            "--include-log-monitor",
            "false",
        ]
        if self.head:
            command += ["--address", self.address]
        else:
            self.head = address
            command += ["--head", "--port", str(self.port), "--include-dashboard", "false", "--temp-dir", str(self.folder)]
            command += ["--ray-client-server-port", str(self.port + 100), "--dashboard-port", str(self.port + 200)]
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", **self.environment}
        with open(self.folder / f"{address}.log", "ab") as log:
            self.nodes[address] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, cwd=_ROOT
            )

    def wait(self, seconds: float = 180) -> None:
        """Wait until every node has started."""
        deadline = time.monotonic() + seconds
        for address, process in self.nodes.items():
            log = self.folder / f"{address}.log"
            while "Ray runtime started" not in log.read_text(errors="replace"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Ray's node {address} did not come up: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.1)

    def kill(self, address: str) -> None:
        """Kill a whole node at once, as when a machine loses power."""
        process = self.nodes.pop(address)
        for pid in processes_below(process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    def kill_one_worker(self, address: str) -> int:
        """Wait for a process that works on a task of a node, and kill it."""
        deadline = time.monotonic() + 60
        while not (found := workers_below(self.nodes[address].pid)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no process of node {address} works on anything")
            time.sleep(0.01)
        os.kill(found[0], signal.SIGKILL)
        return found[0]

    def stop(self) -> None:
        """Kill every node, and remove what they wrote."""
        for address in list(self.nodes):
            self.kill(address)
        shutil.rmtree(self.folder, ignore_errors=True)
