"""A real PostgreSQL for the tests, on loopback; root installs Debian's package if it is missing.

Durability is switched off, so it is for tests only.
"""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cem_assets_tests.services.packages import install_packages

USER = "cem"
PASSWORD = "planted-postgres-password"


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def install() -> str | None:
    """Install PostgreSQL if it is missing; return why that is impossible, or None."""
    return None if _programs() else install_packages("PostgreSQL's programs are", "postgresql")


@dataclass(frozen=True)
class PostgresServer:
    """A server and its folder."""

    folder: Path
    port: int

    def url(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        return f"{driver}://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def restart(self) -> None:
        """Restart at once, which closes every connection."""
        self._control("-m", "immediate", "restart")

    def stop(self) -> None:
        self._control("-m", "immediate", "stop", check=False)

    def _control(self, *words: str, check: bool = True) -> None:
        programs = _programs()
        assert programs is not None
        command = [str(programs / "pg_ctl"), "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), *words]
        _as_server(command, check)


def _as_server(command: list[str], check: bool = True) -> None:
    """Run a command of the server as its own user, because PostgreSQL refuses to run as root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    # The output is not captured, because the server would keep the pipe open for ever.
    subprocess.run([*prefix, *command], check=check, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_server(folder: Path, databases: tuple[str, ...]) -> PostgresServer:
    """Make a fresh cluster and start it. Every user must be able to reach the folder, and its path must be short."""
    programs = _programs()
    assert programs is not None
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder / "password"
    secret.write_text(PASSWORD)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        shutil.chown(secret, "postgres")
    words = ["-U", USER, "-A", "scram-sha-256", "--pwfile", str(secret), "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
    _as_server([str(programs / "initdb"), "-D", str(folder / "data"), *words])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = PostgresServer(folder, port)
    options = (
        f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off -c synchronous_commit=off "
        "-c full_page_writes=off -c max_connections=200"
    )
    server._control("-o", options, "start")
    for database in databases:
        command = [str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", USER, database]
        subprocess.run(command, check=True, env={**os.environ, "PGPASSWORD": PASSWORD})
    return server
