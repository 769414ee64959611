"""Facts about the machine that figures were measured on: processor, device, and versions of libraries."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def num_cores() -> int:
    """Return how many cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


def about_training(device: Any) -> dict[str, Any]:
    """Describe the machine and the libraries behind a measured training step. The checkout need not be installed."""
    import torch

    versions = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "pillow", "pyarrow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "no metadata"
    about = {"processor": processor(), "num_cores": num_cores(), "versions": versions, "torch_threads": torch.get_num_threads()}
    if device.type != "cuda":
        return {**about, "device": "cpu"}
    versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    properties = torch.cuda.get_device_properties(device)
    return {**about, "device": properties.name, "device_memory_bytes": properties.total_memory}
