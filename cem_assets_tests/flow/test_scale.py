"""Memory does not grow with the data; `make soak` runs these tests."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cem_assets.imaging.hamming import greedy_exemplars
from cem_assets_tests.datasets import toml
from cem_assets_tests.imaging.test_hamming import clustered

MIB = 1 << 20


def write_volume(folder: Path, side: int) -> None:
    """Write an isotropic volume of drifting blocks and noise, slice by slice."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 200, (side // 16 + 1, side // 16 + 1), dtype=np.uint8)
    blocks = np.kron(coarse, np.ones((16, 16), np.uint8))[:side, :side]
    with open(folder / "v.nrrd", "wb") as file:
        file.write(f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {side} {side} {side}\nencoding: raw\n\n".encode())
        for z in range(side):
            noise = generator.integers(0, 30, (side, side), dtype=np.uint8)
            file.write((np.roll(blocks, (z // 3, z // 5), (0, 1)) + noise).tobytes())
    (folder / "dataset.toml").write_text(toml("d"))


PEAK = """
import resource, sys
from cem_assets.store.store import open_store
from cem_assets_tests.cem.chain import run_chain
if __name__ == "__main__":
    run_chain(open_store(sys.argv[1]), "d", until="deduplicated")
    # The ru_maxrss of a process begins with the peak of the process that started it.
    own = int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])
    print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024)
"""


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_peak_memory_of_2_gib_is_within_100_mib_of_that_of_256_mib(tmp_path, monkeypatch, workers):
    script = tmp_path / "peak.py"
    script.write_text(PEAK)
    monkeypatch.setenv("CEM_ASSETS_WORKERS", str(workers))
    peaks = {}
    for side in (645, 1290):
        write_volume(tmp_path / f"{side}/inbox/d", side)
        command = [sys.executable, str(script), str(tmp_path / str(side))]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env=_environment()
        )
        peaks[side] = int(done.stdout.split()[-1])
    print(f"peak MiB: {peaks}")
    assert peaks[1290] - peaks[645] <= 100


def peak_kib() -> int:
    """Return the largest memory of this process since the peak was last reset."""
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.soak
def test_a_million_hashes_are_deduplicated_in_bounded_memory():
    hashes = clustered(1_000_000, 200_000, seed=1, flips=5)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak_kib()
    found = greedy_exemplars(hashes, 12, num_threads=2)
    grown = (peak_kib() - before) / 1024
    print(f"{int((found.exemplar == np.arange(len(hashes))).sum())} exemplars, {grown:.0f} MiB more")
    assert grown < 200
    apart = np.bitwise_count(hashes ^ hashes[found.exemplar])
    assert np.array_equal(apart, found.distance) and apart.max() <= 12


@pytest.mark.parametrize("kind", ["tiff", "nrrd"])
def test_a_brick_of_a_large_file_costs_memory_for_the_brick_only(tmp_path, kind):
    """Read one brick of a sparse file of 8 GiB, which must load no more than the brick's own pages."""
    side = 2048
    path = tmp_path / ("a.nrrd" if kind == "nrrd" else "a.tif")
    if kind == "nrrd":
        header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {side} {side} {side}\nencoding: raw\n\n".encode()
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(len(header) + side**3)
    else:
        import tifffile

        tifffile.memmap(path, shape=(side, side, side), dtype="u1", photometric="minisblack", bigtiff=True).flush()
    code = (
        "import sys\nfrom pathlib import Path\nfrom cem_assets.formats import open_file\n"
        "from cem_assets.catalog.description import DatasetDescription\n"
        "d = DatasetDescription(name='d', kind='volume', voxel_size_nm=(8, 8, 8), licence='x', citation='x')\n"
        "s = open_file(Path(sys.argv[1]), Path(sys.argv[2]), d).source\n"
        "peak = lambda: int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
        "before = peak()\n"
        "for z in (0, 896, 1824):\n    s.read((slice(z, z + 224), slice(224, 448), slice(448, 672)))\n"
        "print((peak() - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80
