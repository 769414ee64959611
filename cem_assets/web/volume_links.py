"""Makes links and lines that open a stored volume at the place of a patch: in napari, neuroglancer or Python.

Lines for a shell or for Python are quoted, so any name of a volume is safe. Neuroglancer runs in the browser under an origin
of its own, so it needs a URL that it may read: an http(s) store, or the port of the explorer, which then lets that one origin
read volumes and nothing else.
"""

import json
import shlex
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from cem_assets.cem.patch_grid import PatchPlace
from cem_assets.cem.volumes.ome_zarr import StoredVolume
from cem_assets.errors import DataError

NEUROGLANCER = "https://neuroglancer-demo.appspot.com"


def check_origin(url: str) -> str:
    """Return the origin of a neuroglancer deployment.

    Raises:
        DataError: It is not an http(s) address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise DataError(f"neuroglancer is expected at an address such as {NEUROGLANCER}; found {url!r}.")
    return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True)
class VolumeLinks:
    """Makes the lines and links of a session.

    Attributes:
        store_url: The store.
        neuroglancer: Address of a neuroglancer; empty where volumes are not served to it.
        served: Address, ending in "/", at which this session serves volumes to neuroglancer.
    """

    store_url: str
    neuroglancer: str = ""
    served: str = ""

    def of(self, dataset: str, volume: StoredVolume, place: PatchPlace | None) -> dict[str, Any]:
        """Return the ways to open a volume.

        Args:
            place: Patch to show; None shows the middle of the volume.

        Returns:
            "url" of the OME-Zarr group, "napari" (a shell line), "python" (lines), and "neuroglancer": a link or nothing.
        """
        url = volume.store.url_of(volume.folder)
        return {
            "url": url,
            "napari": f"napari --plugin napari-ome-zarr {shlex.quote(url)}",
            "python": self._python(dataset, volume, place),
            "neuroglancer": self._neuroglancer(dataset, volume, place),
        }

    def _python(self, dataset: str, volume: StoredVolume, place: PatchPlace | None) -> str:
        scale = list(volume.record.voxel_size_nm)
        lines = [
            "import napari",
            "from cem_assets import readers",
            f"volume = readers.open_volume({dataset!r}, {volume.name!r}, root={self.store_url!r})",
            f"viewer = napari.view_image(volume, name={volume.name!r}, scale={scale})  # nm",
        ]
        if place is not None and place.axis >= 0:
            spans = [(span.start, span.stop) for span in place.box()]
            axes = [number for number in range(3) if number != place.axis]
            corners = []
            for row, column in ((0, 0), (0, 1), (1, 1), (1, 0)):
                point = [0, 0, 0]
                point[place.axis] = place.index
                point[axes[0]], point[axes[1]] = spans[axes[0]][row], spans[axes[1]][column]
                corners.append(point)
            middle = [(start + stop - 1) // 2 for start, stop in spans]
            lines += [
                f"viewer.add_shapes([{corners}], shape_type='polygon', face_color='transparent', edge_color='yellow', "
                f"edge_width=3, scale={scale}, name='patch')",
                f"viewer.dims.order = {(place.axis, *axes)}",
                f"viewer.dims.set_current_step({place.axis}, {place.index})",
                f"viewer.camera.center = {[round(at * step, 3) for at, step in zip(middle, scale, strict=True)]}",
            ]
        return "\n".join([*lines, "napari.run()"])

    def _neuroglancer(self, dataset: str, volume: StoredVolume, place: PatchPlace | None) -> str:
        if self.served and self.neuroglancer:
            source, program = f"{self.served}{quote(dataset)}/{quote(volume.record.folder)}/", self.neuroglancer
        elif self.store_url.startswith(("http://", "https://")):
            source, program = volume.store.url_of(volume.folder), self.neuroglancer or NEUROGLANCER
        else:
            return ""
        middle = [side / 2 for side in volume.shape]
        if place is not None and place.axis >= 0:
            middle = [(span.start + span.stop) / 2 for span in place.box()]
        layer: dict[str, Any] = {"type": "image", "name": volume.name, "source": f"zarr://{source}"}
        layers = [layer]
        if place is not None and place.axis >= 0:
            box = place.box()
            layers.append(
                {
                    "type": "annotation",
                    "name": "patch",
                    "source": {"url": "local://annotations", "transform": {"outputDimensions": _dimensions(volume)}},
                    "annotations": [
                        {
                            "type": "axis_aligned_bounding_box",
                            "id": "patch",
                            "pointA": [span.start for span in box],
                            "pointB": [span.stop for span in box],
                        }
                    ],
                }
            )
        layout = {0: "xy", 1: "xz", 2: "yz"}.get(place.axis if place else 0, "4panel")
        state = {"dimensions": _dimensions(volume), "position": middle, "layers": layers, "layout": layout}
        return f"{program}/#!{quote(json.dumps(state, separators=(',', ':')))}"


def _dimensions(volume: StoredVolume) -> dict[str, list[Any]]:
    return {name: [size * 1e-9, "m"] for name, size in zip("zyx", volume.record.voxel_size_nm, strict=True)}
