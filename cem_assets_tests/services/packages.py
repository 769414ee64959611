"""Installing Debian packages for the tests, if they are missing and the process may do so."""

import os
import shutil
import subprocess


def install_packages(what: str, *packages: str) -> str | None:
    """Install packages; return why that is impossible, or None."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"{what} not installed, and only root on Debian can install them"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(command[:2])} failed: {done.stderr.strip().splitlines()[-1:] or done.returncode}"
    return None
