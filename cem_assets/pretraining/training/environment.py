"""Where a training runs: versions, device, state of the code; recorded with every tracked run."""

import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from cem_assets import __version__, environment

if TYPE_CHECKING:
    import torch


def environment_of(device: "torch.device") -> dict[str, str]:
    """Describe where a training runs: versions, device, state of the code."""
    import torch
    import torchvision

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.processor() or 'cpu'}"
    return {
        "cem_assets": __version__,
        "git": git_state(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": str(torch.version.cuda or ""),
        "device": f"{device.type}: {name}",
    }


def git_state() -> str:
    """Return the commit of a checkout with "-dirty" where files were changed; CEM_ASSETS_GIT_STATE, or "" elsewhere."""
    folder = Path(__file__).parent
    if found := environment.text(environment.GIT_STATE):
        return found
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        # An installed package may lie inside somebody else's checkout.
        if Path(top).resolve() != folder.parents[1].resolve():
            return ""
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
