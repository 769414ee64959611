"""Reads the metadata of a remote volume, in whichever format it is stored.

`zarr`, `n5` and `precomputed` each turn their format's metadata into a list of `ScaleLayout`. The metadata come from foreign
servers and are not trusted: tensorstore checks that an array's metadata are valid, and we check that sizes and paths stay
within limits.
"""

from collections.abc import Callable

from cem_assets import environment
from cem_assets.errors import DataError
from cem_assets.sources.volumes.n5 import n5_scales
from cem_assets.sources.volumes.objects import RemoteObjects
from cem_assets.sources.volumes.precomputed import precomputed_scales
from cem_assets.sources.volumes.scales import ScaleLayout
from cem_assets.sources.volumes.zarr import zarr_scales

_READERS: dict[str, Callable[[RemoteObjects], list[ScaleLayout] | None]] = {
    "zarr2": lambda objects: zarr_scales(objects, (2,)),
    "zarr3": lambda objects: zarr_scales(objects, (3,)),
    "ome-zarr": lambda objects: zarr_scales(objects, (3, 2)),
    "precomputed": precomputed_scales,
    "n5": n5_scales,
}
_TRIED_BY_AUTO = ("ome-zarr", "precomputed", "n5")


def read_scales(objects: RemoteObjects, kind: str) -> list[ScaleLayout]:
    """Read the scales of a volume, finest first.

    Args:
        kind: "zarr2", "zarr3", "ome-zarr", "n5", "precomputed", or "auto" to look for each format in turn.

    Returns:
        At least one scale.

    Raises:
        FileNotFoundError: There is no volume of that kind.
        PermissionError: The server refuses every metadata file (403).
        DataError: The metadata break the rules of their format, or ask for a feature that is not supported.
    """
    if kind not in (*_READERS, "auto"):
        raise DataError(f"kind of remote volume is {kind!r}; expected one of {', '.join(_READERS)}, auto.")
    for name in (kind,) if kind != "auto" else _TRIED_BY_AUTO:
        try:
            scales = _READERS[name](objects)
        except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
            raise DataError(
                f"{objects.address}: its {name} metadata lack or misuse {error}; expected them to follow the format."
            ) from error
        if scales:
            return scales
    if objects.counts.num_forbidden and not objects.counts.num_present:
        raise PermissionError(
            f"{objects.address}: access to its metadata is refused (403). Check the address, because some servers answer 403 "
            f"for what does not exist. For a private S3 bucket set {environment.REMOTE_S3_SIGNED}=yes and the AWS_* variables."
        )
    raise FileNotFoundError(
        f"{objects.address} holds no volume of kind {kind!r}: its metadata are absent or refused. Check the address and kind."
    )
