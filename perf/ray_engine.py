"""What the Ray engine costs beside the local one on this machine: many small items, two processes each.

Needs `make install-ray`; without it the row says so. The cluster is one node of two CPUs that is started and stopped here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from perf.timing import Measured

_ROOT = Path(__file__).parents[1]
_PYTHON = _ROOT / ".venv-ray/bin/python"
_WORK = "hashing of 100 patches an item, 2 processes, Ray beside the local pool"


def measure(is_quick: bool = False) -> list[Measured]:
    if not _PYTHON.is_file():
        return [
            Measured(_WORK, "items/s", 0.0, 0.0, "local engine", 0.0, "not measured: Ray is not installed (make install-ray)")
        ]
    command = [str(_PYTHON), "-m", "perf.ray_engine", "100" if is_quick else "400"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "CEM_ASSETS_ENGINE": "ray"}
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"the measurement of Ray failed: {done.stderr[-2000:]}")
    ours, peer = json.loads(done.stdout.splitlines()[-1])
    return [Measured(_WORK, "items/s", ours, peer, "local engine", 0.0, "equal results; processes of both were up")]


def hash_some(seed: int) -> list[int]:
    import numpy as np

    from cem_assets.imaging.dhash import dhash

    patches = np.random.default_rng(seed).integers(0, 256, (100, 224, 224), dtype=np.uint8)
    return [int(value) for value in dhash(patches)]


def compare(num_items: int) -> tuple[float, float]:
    """Return items/s through Ray and through the local pool, after the processes have started."""
    import time

    import ray

    from cem_assets.engine import LocalEngine
    from cem_assets.ray_engine import RayEngine
    from perf.ray_engine import hash_some as job  # by its module's name, so that workers find it

    os.environ.pop("RAY_ADDRESS", None)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False, logging_level="ERROR")
    rates, results = [], []
    for engine in (RayEngine(), LocalEngine(2)):
        stream = engine.map(job, range(16 + num_items))
        found = [next(stream) for _ in range(16)]  # by now every process works
        started = time.perf_counter()
        found += stream
        rates.append(num_items / (time.perf_counter() - started))
        results.append(found)
    assert results[0] == results[1]
    return rates[0], rates[1]


if __name__ == "__main__":
    print(json.dumps(compare(int(sys.argv[1]))))
