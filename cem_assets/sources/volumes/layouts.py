"""Metadata of foreign volumes: their scales, axes, chunks, and how a chunk is to be decoded.

OME-Zarr and plain Zarr (v2, v3, sharded), N5 (with COSEM's and BigDataViewer's pyramids) and neuroglancer
precomputed become `ScaleLayout`s in one common form. Everything here is untrusted JSON, so every number is
checked. Where chunks lie inside shards is `remote_shards`; reading voxels is `remote_volumes`.
"""

from collections.abc import Callable

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import S3_SIGNED_VARIABLE, RemoteObjects
from cem_assets.sources.volumes.scales import KINDS, ScaleLayout


def read_scales(objects: RemoteObjects, kind: str) -> list[ScaleLayout]:
    """Read the scales of a volume, finest first.

    Args:
        objects: The volume's address.
        kind: One of `KINDS`.

    Returns:
        At least one scale.

    Raises:
        FileNotFoundError: There is no volume of that kind.
        PermissionError: Everything asked for is refused.
        DataError: Its metadata break rules or ask for what is not supported.
    """
    from cem_assets.sources.volumes.n5 import n5_scales
    from cem_assets.sources.volumes.precomputed import precomputed_scales
    from cem_assets.sources.volumes.zarr import zarr_scales

    if kind not in KINDS:
        raise DataError(f"kind of remote volume is {kind!r}; expected one of {', '.join(KINDS)}.")
    readers: dict[str, Callable[[RemoteObjects], list[ScaleLayout] | None]] = {
        "zarr2": lambda o: zarr_scales(o, (2,)),
        "zarr3": lambda o: zarr_scales(o, (3,)),
        "ome-zarr": lambda o: zarr_scales(o, (3, 2)),
        "n5": n5_scales,
        "precomputed": precomputed_scales,
    }
    for name in [kind] if kind != "auto" else ["ome-zarr", "precomputed", "n5"]:
        try:
            scales = readers[name](objects)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"{objects.address}: its {name} metadata lack or misuse {error}; expected them to follow the format."
            ) from error
        if scales:
            return scales
    if objects.counts.num_forbidden and not objects.counts.num_present:
        raise PermissionError(
            f"{objects.address}: access to its metadata is refused (403). Check the address: some servers refuse what does not "
            f"exist. For a private S3 bucket set {S3_SIGNED_VARIABLE}=yes and the AWS_* variables."
        )
    raise FileNotFoundError(
        f"{objects.address} holds no volume of kind {kind!r}: its metadata are absent or refused. Check both."
    )
