"""dHash on one core, beside imagehash, and beside imagededup where it is installed, on the same patches."""

import imagehash
import numpy as np
from PIL import Image

from cem_assets.cem.phantom import em_phantom
from cem_assets.imaging.dhash import BrickHashes, dhash
from perf.peers import absence, peer
from perf.timing import Measured, best_seconds


def by_imagehash(patches: np.ndarray) -> list[int]:
    out = []
    for patch in patches:
        image = Image.fromarray(patch).resize((224, 224), Image.Resampling.BILINEAR)
        out.append(int(str(imagehash.dhash(image, hash_size=8)), 16))
    return out


def beside_imagededup(patches: np.ndarray) -> Measured:
    """Only full patches: imagededup resizes any size straight to 9 x 8, so its hashes of border patches differ from ours."""
    work, goal = "dHash, full patches, equal hashes", 4
    if not (methods := peer("imagededup.methods")):
        (ours,) = best_seconds(lambda: dhash(patches))
        return Measured(work, "patches/s", len(patches) / ours, 0, "imagededup", goal, absence("imagededup"))
    hasher = methods.DHash(verbose=False)

    def by_imagededup() -> list[int]:
        return [int(hasher.encode_image(image_array=patch), 16) for patch in patches]

    assert dhash(patches).tolist() == by_imagededup()
    ours, other = best_seconds(lambda: dhash(patches), by_imagededup)
    return Measured(work, "patches/s", len(patches) / ours, len(patches) / other, "imagededup", goal)


def measure(is_quick: bool = False) -> list[Measured]:
    brick = em_phantom((224, 224, 224), 1).voxels
    rows = []
    for name, patches in (
        ("dHash, full patches", brick),
        ("dHash, border patches 128 x 128", np.ascontiguousarray(brick[:, :128, :128])),
        ("dHash, border patches 224 x 130", np.ascontiguousarray(brick[:, :, :130])),
    ):
        chosen = patches[:112]
        assert dhash(chosen).tolist() == by_imagehash(chosen)
        ours, peer = best_seconds(lambda p=chosen: dhash(p), lambda p=chosen: by_imagehash(p))
        rows.append(Measured(name, "patches/s", len(chosen) / ours, len(chosen) / peer, "imagehash", 4))

    rows.append(beside_imagededup(brick[:112]))

    def all_planes() -> None:
        hashes = BrickHashes(brick)
        for axis in range(3):
            hashes.along(axis)

    ours, peer = best_seconds(all_planes, lambda: by_imagehash(brick[:112]))
    rows.append(Measured("dHash, a brick on three planes", "patches/s", 672 / ours, 112 / peer, "imagehash", 4))
    return rows
