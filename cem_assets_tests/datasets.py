"""Small datasets for the tests: folders with files and a `dataset.toml`."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from cem_assets.store.store import Store


def toml(name: str, kind: str = "volume", **more: str) -> str:
    """Write a `dataset.toml`; keyword values are TOML text."""
    size = "pixel_size_nm = [4.0, 4.0]" if kind == "images" else "voxel_size_nm = [8.0, 8.0, 8.0]"
    keys = {"licence": '"CC0-1.0"', "citation": '"Test et al. 2026"', **more}
    if "voxel_size_nm" in more:
        size = f"voxel_size_nm = {keys.pop('voxel_size_nm')}"
    lines = [f'name = "{name}"', f'kind = "{kind}"', size, *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=32)
def cells(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Draw something with structure at many scales, uint8: neighbouring slices look alike, distant ones do not.

    Cached and read-only: the tests ask for the same few again and again.
    """
    generator = np.random.default_rng(seed)
    field = generator.normal(scale=0.2, size=shape).astype(np.float32)
    for _ in range(6):
        phase = np.float32(generator.uniform(0, 6))
        for axis, side in enumerate(shape):
            ramp = np.linspace(0, side / 40 * generator.normal() * 3, side, dtype=np.float32)
            phase = phase + ramp.reshape([-1 if n == axis else 1 for n in range(len(shape))])
        field += np.sin(phase)
    out = np.clip(128 + 30 * field, 0, 255).astype(np.uint8)
    out.setflags(write=False)
    return out


def put_in_inbox(store: Store, name: str, files: dict[str, bytes], description: str | None = None) -> str:
    """Put a dataset into a store's inbox, `dataset.toml` last."""
    for path, data in files.items():
        store.put(f"inbox/{name}/{path}", data)
    store.put(f"inbox/{name}/dataset.toml", (toml(name) if description is None else description).encode())
    return name


def file_bytes(folder: Path, name: str, write: Callable[[Path], object]) -> bytes:
    """Write a file with a library that wants a path, and return its bytes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return path.read_bytes()


def nrrd_bytes(voxels: np.ndarray) -> bytes:
    """Write a raw NRRD by hand: pynrrd puts the time into its header, and equal data must be equal bytes."""
    z, y, x = voxels.shape
    return f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {x} {y} {z}\nencoding: raw\n\n".encode() + voxels.tobytes()


def png_bytes(folder: Path, pixels: np.ndarray) -> bytes:
    return file_bytes(folder, "i.png", lambda path: Image.fromarray(pixels).save(path))


def volume_dataset(store: Store, name: str = "cells", shape=(70, 130, 240), seed: int = 0) -> str:
    """Put one isotropic volume into the inbox."""
    return put_in_inbox(store, name, {"v.nrrd": nrrd_bytes(cells(shape, seed))})


def image_dataset(store: Store, tmp_path: Path, name: str = "pictures", num: int = 5) -> str:
    """Put a set of 2D images of several sizes into the inbox."""
    sizes = [(300, 300), (224, 500), (130, 90), (448, 448), (100, 700)]
    files = {f"im {n}.png": png_bytes(tmp_path, cells(sizes[n % 5], n)) for n in range(num)}
    return put_in_inbox(store, name, files, toml(name, "images"))
