"""Collects what the store knows about one patch or crop: place, duplicates, score, releases, licence and ways to open it."""

from typing import Any

from cem_assets.cem.patch_grid import PLANE_NAMES, PatchPlace, parse_patch_name
from cem_assets.cem.patches.pixels import DatasetPixels
from cem_assets.errors import UnknownNameError
from cem_assets.store.assets import CLASSIFIER, SCORES
from cem_assets.store.manifests import Manifest
from cem_assets.web.column_cache import TableContent
from cem_assets.web.explorer_pictures import Pictures
from cem_assets.web.explorer_queries import Questions
from cem_assets.web.explorer_tables import CEM_STAGES, StoreTables
from cem_assets.web.volume_links import VolumeLinks

MAX_MEMBERS = 200
"""Largest number of duplicates of an exemplar that are listed."""
_FACTS = ("licence", "citation", "organism", "tissue", "technique", "source_url", "kind", "voxel_size_nm", "pixel_size_nm")
_CROP_HIDDEN = frozenset({"partition", "part", "row_group", "dhash"})


class Details:
    """Looks up single patches and crops.

    Args:
        questions: Queries the tables of the catalogue.
        pictures: Opens the volumes of the catalogue.
        links: Makes links that open volumes elsewhere.
    """

    def __init__(self, catalogue: StoreTables, questions: Questions, pictures: Pictures, links: VolumeLinks) -> None:
        self._catalogue, self._questions, self._pictures, self._links = catalogue, questions, pictures, links

    def patch(self, stage: str, version: str, dataset: str, name: str) -> dict[str, Any]:
        """Describe a patch.

        Args:
            stage: The EM stage at which the page shows it.

        Raises:
            FileNotFoundError: The stage holds no such patch.
        """
        (table,) = self._catalogue.tables(stage, version, dataset)
        found = self._questions.find([table], {"name": name})
        if not found:
            raise FileNotFoundError(f"dataset {dataset!r} has no patch {name!r} at the stage {stage} {version}".rstrip() + ".")
        row, place = found[0], parse_patch_name(name)
        duplicates = self._duplicates(dataset, name)
        exemplar = duplicates["exemplar"] or name
        return {
            "dataset": dataset,
            "name": name,
            "stage": stage,
            "v": table.key[:16],
            **({key: row[key] for key in ("part", "row_group")} if table.has_pixels else {}),
            "place": {**vars(place), "plane": PLANE_NAMES[place.axis]},
            "dhash": f"{row['dhash']:016x}",
            "duplicates": duplicates,
            "score": self._score(dataset, exemplar, row if stage not in ("raw", "deduplicated") else None),
            "releases": self._releases(dataset, name, exemplar),
            "facts": self._facts(stage, version, dataset),
            "volume": self._volume(dataset, place),
            "folder": self._catalogue.store.url_of(table.folder),
        }

    def crop(self, stage: str, version: str, key: str, filename: str) -> dict[str, Any]:
        """Describe a crop of CytoImageNet.

        Raises:
            FileNotFoundError: The stage holds no such crop.
        """
        (table,) = self._catalogue.tables(stage, version, key)
        found = self._questions.find([table], {"filename": filename})
        if not found:
            raise FileNotFoundError(f"label {key!r} has no crop {filename!r} at the stage {stage} {version}".rstrip() + ".")
        row = found[0]
        facts = self._catalogue.label_sources().get(row["source"], {})
        releases = []
        for release in self._catalogue.cyto_releases():
            try:
                tables = self._catalogue.tables("cyto_release", release.inputs.partition, key)
            except FileNotFoundError:
                tables = []
            same = self._questions.find(tables, {"pixel_sha256": row["pixel_sha256"], "idx": row["idx"]}) if tables else []
            releases.append({"version": release.inputs.partition, "is_in": bool(same), "why": ""})
        return {
            "partition": key,
            "filename": filename,
            "stage": stage,
            "v": table.key[:16],
            "part": row["part"],
            "row_group": row["row_group"],
            "row": {name: value for name, value in row.items() if name not in _CROP_HIDDEN and value not in ("", None)},
            "facts": {name: facts.get(name, "") for name in ("title", "licence", "citation")},
            "releases": releases,
            "folder": self._catalogue.store.url_of(table.folder),
        }

    def _duplicates(self, dataset: str, name: str) -> dict[str, Any]:
        fates = self._catalogue.fates("raw", dataset)
        nothing: dict[str, Any] = {"exemplar": "", "distance": None, "num": None, "members": []}
        if fates.duplicates is None:
            return nothing
        found = self._questions.find([fates.duplicates], {"name": name})
        exemplar = found[0]["exemplar"] if found else name
        files = self._catalogue.files([fates.duplicates])
        if not files:
            return nothing
        sql = "SELECT name, distance, count(*) OVER () AS num FROM read_parquet(?) WHERE exemplar = ? "
        sql += "ORDER BY distance, name LIMIT ?"
        members = self._questions.ask(sql, (files, exemplar, MAX_MEMBERS))
        return {
            "exemplar": exemplar,
            "distance": found[0]["distance"] if found else None,
            "num": members[0]["num"] if members else 0,
            "members": [{"name": row["name"], "distance": row["distance"]} for row in members],
        }

    def _score(self, dataset: str, exemplar: str, row: dict[str, Any] | None) -> dict[str, Any] | None:
        manifest, filtered = self._catalogue.manifest("scores", dataset), self._catalogue.manifest("filtered", dataset)
        if row is None:
            found = self._questions.find(self._catalogue.tables("scores", "", dataset), {"name": exemplar}) if manifest else []
            row = found[0] if found else None
        if row is None:
            return None
        reason = ""
        if manifest and filtered and filtered.inputs.upstream.get(f"{SCORES}/{dataset}") == manifest.digest:
            dropped = self._catalogue.fates("scores", dataset).dropped
            why = self._questions.find([dropped], {"name": exemplar}) if dropped else []
            reason = why[0]["reason"] if why else "kept"
        return {
            "informative": row["informative"],
            "logit": row["logit"],
            "of": exemplar,
            "outcome": reason,
            "threshold": filtered.inputs.parameters.get("threshold") if filtered else None,
            "classifier": manifest.inputs.upstream.get(CLASSIFIER, "")[:12] if manifest else "",
        }

    def _releases(self, dataset: str, name: str, exemplar: str) -> list[dict[str, Any]]:
        told = []
        for release in self._catalogue.releases():
            version = release.inputs.partition
            members = [item for item in release.details["contents"] if item["dataset"] == dataset]
            if not members:
                told.append({"version": version, "is_in": False, "why": "it has nothing of this dataset"})
                continue
            tables = self._catalogue.tables("release", version, dataset)
            if self._questions.find(tables, {"name": name}):
                told.append({"version": version, "is_in": True, "why": ""})
            elif exemplar != name and self._questions.find(tables, {"name": exemplar}):
                told.append({"version": version, "is_in": False, "why": "its exemplar stands for it there"})
            else:
                told.append({"version": version, "is_in": False, "why": self._why_left_out(release, dataset, name)})
        return told

    def _why_left_out(self, release: Manifest, dataset: str, name: str) -> str:
        excluded = self._catalogue.excluded(release)
        found = self._questions.find([excluded], {"dataset": dataset, "name": name}) if excluded else []
        return found[0]["reason"] if found else "not among its patches"

    def _facts(self, stage: str, version: str, dataset: str) -> dict[str, Any]:
        """Return the curator's description; for a release, as it was when the release was made."""
        if stage == "release":
            contents = self._catalogue.release(version).details["contents"]
            said: dict[str, Any] = next(item["description"] for item in contents if item["dataset"] == dataset)
        else:
            manifest = self._catalogue.manifest(stage, dataset)
            assert stage in CEM_STAGES and manifest is not None  # its table has just been read
            said = manifest.details["description"]
        return {name: said.get(name) for name in _FACTS}

    def volumes_digest(self, stage: str, dataset: str, table: TableContent) -> str:
        """Return the digest of the standardized data behind a stage's table; empty means the current one."""
        manifest = self._catalogue.manifest(stage, dataset) if stage in CEM_STAGES else None
        return str(manifest.details.get("volumes_digest", "")) if manifest and manifest.folder == table.folder else ""

    def _volume(self, dataset: str, place: PatchPlace) -> dict[str, Any] | None:
        try:
            pixels = self._pictures.data_of(dataset)
            return self.volume(pixels, place.volume, place)
        except (FileNotFoundError, UnknownNameError):  # swept, or standardized again without it; the patch is still shown
            return None

    def volume(self, pixels: DatasetPixels, name: str, place: PatchPlace | None) -> dict[str, Any]:
        """Describe a volume or a 2D image, with ways to open it.

        Raises:
            UnknownNameError: There is no volume or image of that name.
        """
        if pixels.images is not None:
            sizes = pixels.images.sizes()
            if name not in sizes:
                raise UnknownNameError(f"dataset {pixels.dataset!r} has no image {name!r:.200}.")
            height, width = sizes[name]
            size = pixels.description.pixel_size_nm
            return {"name": name, "shape": [1, height, width], "step_nm": [None, *size] if size else None, "links": None}
        volume = pixels.volume(name)
        return {
            "name": name,
            "shape": list(volume.shape),
            "step_nm": list(volume.record.voxel_size_nm),
            "files": list(volume.record.files),
            "intensity": str(volume.record.intensity.policy),
            "links": self._links.of(pixels.dataset, volume, place),
        }
