"""A real S3 server for the tests: Ceph's RADOS Gateway with one monitor and one OSD, on one machine.

The commit protocol needs an atomic `If-None-Match: *`, paged listings and refused keys, which mocks only imitate. The packages
come from Debian; root installs them if they are missing. The server listens on loopback only, which it must, because the
cluster's own authentication is off.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

from cem_assets_tests.services.packages import install_packages

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"
_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
_LIBRARIES = "/usr/lib/x86_64-linux-gnu"


def missing_programs() -> list[str]:
    return [program for program in _PROGRAMS if shutil.which(program) is None]


def install() -> str | None:
    """Install Ceph if it is missing; return why that is impossible, or None."""
    return None if not missing_programs() else install_packages(f"Ceph's {', '.join(missing_programs())} are", *PACKAGES)


def _free_port() -> int:
    """Find a base port; the monitor and the OSD take ports shortly after it."""
    for base in range(19020, 19900, 70):
        try:
            for port in (base, base + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
    raise RuntimeError("no free ports between 19020 and 19900 for the S3 server")


@dataclass
class CephServer:
    """The server's processes and folder."""

    folder: Path
    port: int
    processes: dict[str, int]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the gateway, also after it was stopped, and wait until it answers."""
        self._spawn("radosgw", ["radosgw", "-f", "-n", "client.admin", "--log-file", f"{self.folder}/log/rgw.log"])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(self.endpoint, timeout=2):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.05)
        tail = (self.folder / "log/rgw.log").read_text()[-2000:]
        raise RuntimeError(f"the S3 server did not come up on {self.endpoint}: {tail}")

    def stop_gateway(self) -> None:
        """Stop the gateway, as when a server restarts; the data stay."""
        self._kill("radosgw", signal.SIGTERM)

    def add_user(self, name: str, access_key: str, secret_key: str) -> None:
        """Create an S3 user."""
        command = ["radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}"]
        self._run([*command, f"--access-key={access_key}", f"--secret-key={secret_key}"])

    def set_quota(self, user: str, mebibytes: int) -> None:
        """Limit what a user may store."""
        words = ["--quota-scope=user", f"--uid={user}"]
        self._run(["radosgw-admin", "quota", "set", *words, f"--max-size={mebibytes}M"])
        self._run(["radosgw-admin", "quota", "enable", *words])

    def stop(self) -> None:
        for name in ("radosgw", "osd", "mon"):
            self._kill(name, signal.SIGTERM)

    def _environment(self) -> dict[str, str]:
        conf = f"{self.folder}/ceph.conf"
        return {**os.environ, "CEPH_CONF": conf, "CEPH_ARGS": f"-c {conf}"}

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")

    def _spawn(self, name: str, command: list[str]) -> None:
        with open(self.folder / f"log/{name}.out", "ab") as log:
            process = subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.processes[name] = process.pid

    def _kill(self, name: str, how: signal.Signals) -> None:
        pid = self.processes.pop(name, None)
        if pid is None:
            return
        try:
            os.kill(pid, how)
            for _ in range(200):
                if os.waitpid(pid, os.WNOHANG) != (0, 0):
                    return
                time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            return


def start_server(folder: Path, object_store: str = "bluestore") -> CephServer:
    """Make a fresh cluster in a folder and start it, which takes about ten seconds.

    Args:
        folder: An empty folder, which is made if it is missing.
        object_store: Where objects are kept. "memstore" keeps up to 8 GiB in memory and is twice as fast.
    """
    port = _free_port()
    for name in ("log", "run", "mon", "osd"):
        (folder / name).mkdir(parents=True)
    cluster, osd = str(uuid.uuid4()), str(uuid.uuid4())
    (folder / "ceph.conf").write_text(_configuration(folder, port, cluster, object_store))
    server = CephServer(folder, port, {})
    address = f"[v2:127.0.0.1:{port + 1}]"
    server._run(["monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, f"{folder}/monmap"])
    server._run(["ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{folder}/monmap"])
    try:
        server._spawn("mon", ["ceph-mon", "-f", "-i", "a"])
        _wait_for_port(port + 1)
        # Debian's `ceph` is a script for the system's Python; that of a virtual environment lacks its modules.
        program = shutil.which("ceph") or "ceph"
        server._run(["/usr/bin/python3", program, "--connect-timeout", "30", "osd", "new", osd])
        server._run(["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd])
        server._spawn("osd", ["ceph-osd", "-f", "-i", "0"])
        server.start()
        server.add_user("cem", ACCESS_KEY, SECRET_KEY)
    except BaseException:
        server.stop()
        raise
    return server


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port} after 30 s")


def _configuration(folder: Path, port: int, cluster: str, object_store: str) -> str:
    return f"""\
[global]
fsid = {cluster}
mon host = [v2:127.0.0.1:{port + 1}]
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
osd crush chooseleaf type = 0
ms bind ipv6 = false
ms bind msgr1 = false
ms bind port min = {port + 10}
ms bind port max = {port + 60}
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/log/$name.log
mon cluster log file = {folder}/log/cluster.log
pid file =
crash dir = {folder}/log
plugin dir = {_LIBRARIES}
erasure code dir = {_LIBRARIES}/ceph/erasure-code
osd class dir = {_LIBRARIES}/rados-classes
osd class load list = *
osd class default list = *
keyring = /dev/null
[mon]
mon data = {folder}/mon
paxos propose interval = 0.05
paxos min wait = 0.01
mon data avail crit = 1
mon data avail warn = 2
[osd]
osd data = {folder}/osd
osd objectstore = {object_store}
memstore device bytes = 8589934592
bluestore block size = 21474836480
bluestore block create = true
bluestore fsck on mount = false
osd memory target = 1073741824
[client]
ms mon client mode = crc
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw enable usage log = false
rgw enable ops log = false
rgw thread pool size = 64
rgw gc obj min wait = 10
rgw gc processor period = 20
rgw gc processor max time = 20
rgw run sync thread = false
rgw verify ssl = false
"""
