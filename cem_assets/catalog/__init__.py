"""The catalogue: tables of the datasets, sources, weights and benchmarks that exist.

`em_datasets.csv` lists electron-microscopy datasets by name, with voxel size, licence, citation, and the addresses of their
files or of the remote volume that is sampled. For datasets made of single files, `registries/` holds the names and sha256 of
the files. `cem_assets.sources` fetches files, and `cem_assets.inbox.remote_cubes` samples remote volumes.
"""

import csv
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from cem_assets.errors import DataError

REMOTE_FORMATS = ("zarr2", "zarr3", "ome-zarr", "n5", "precomputed")
_COLUMNS = (
    "name", "enabled", "kind", "z_nm", "y_nm", "x_nm", "licence", "citation", "organism", "tissue", "technique", "source_url",
    "base_url", "registry", "remote_url", "remote_format", "scale", "crop", "cube_px", "invert", "padding_value", "gigabytes",
)  # fmt: skip
_REMOTE_COLUMNS = _COLUMNS[15:]
_ARCHIVE_COLUMNS = ("archive", "accession", "mirrors", "must_accept")
"""All four may follow the other columns. In a table without them they count as empty."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.ASCII)


@dataclass(frozen=True)
class RemoteSource:
    """A volume on a remote server, from which cubes are taken.

    Attributes:
        url: The address: s3://, gs:// or https://.
        format: One of `REMOTE_FORMATS`.
        scale: The scale of the pyramid that is sampled; 0 is the finest.
        is_cropped: Whether cubes are taken. Otherwise the whole volume is taken, if it fits the budget.
        cube_px: Side of a cube in voxels.
        is_inverted: Whether dark and bright are exchanged.
        padding_value: The source value that marks voxels without data.
        gigabytes: Budget in 10^9 bytes.
    """

    url: str
    format: str
    scale: int
    is_cropped: bool
    cube_px: int
    is_inverted: bool
    padding_value: int
    gigabytes: float


@dataclass(frozen=True)
class EmDataset:
    """A row of `em_datasets.csv`.

    Attributes:
        is_enabled: Whether the schedule of the catalogue fetches the dataset.
        kind: "volume", "images" or "video".
        voxel_size_nm: (z, y, x) in nm. For a remote volume it is that of the finest scale; None if only the volume's metadata
            have it.
        licence, citation, organism, tissue, technique, source_url: As in `dataset.toml`.
        base_url: The address of the folder that holds the files.
        files: The sha256 of each file, by its name.
        remote: The volume to sample, for datasets that are not made of files.
        archive: The archive that has the files, a key of `cem_assets.sources.archives.ADAPTERS`; it replaces base_url.
        accession: The archive's identifier of the dataset.
        mirrors: Addresses of folders with the same files, which are tried in order; they end with '/'.
        licence_must_be_accepted: Whether the settings of the store must name the row before anything is fetched.
    """

    name: str
    is_enabled: bool
    kind: str
    voxel_size_nm: tuple[float, float, float] | None
    licence: str
    citation: str
    organism: str
    tissue: str
    technique: str
    source_url: str
    base_url: str
    files: dict[str, str]
    remote: RemoteSource | None = None
    archive: str = ""
    accession: str = ""
    mirrors: tuple[str, ...] = ()
    licence_must_be_accepted: bool = False

    def description_toml(self, voxel_size_nm: tuple[float, float, float] | None = None) -> str:
        """Write the row as a `dataset.toml`.

        Args:
            voxel_size_nm: (z, y, x) of the data that were fetched; None takes the row's.

        Raises:
            DataError: The voxel size is not known.
        """
        size = voxel_size_nm or self.voxel_size_nm
        if size is None:
            raise DataError(f"the catalogue does not know the voxel size of {self.name!r}; expected it from its metadata.")
        texts = ("licence", "citation", "organism", "tissue", "technique", "source_url")
        lines = [f'name = "{self.name}"', f'kind = "{self.kind}"']
        # Images have no depth, so their description has the size of a pixel.
        lines.append(f"pixel_size_nm = {list(size[1:])}" if self.kind == "images" else f"voxel_size_nm = {list(size)}")
        for key in texts:
            value = str(getattr(self, key)).replace("\\", "\\\\").replace('"', '\\"')
            if value:
                lines.append(f'{key} = "{value}"')
        return "\n".join(lines) + "\n"


@lru_cache(maxsize=1)
def em_datasets() -> dict[str, EmDataset]:
    """Read the catalogue of EM datasets, by name."""
    folder = files("cem_assets.catalog")
    text = folder.joinpath("em_datasets.csv").read_text(encoding="utf-8")
    return parse_em_datasets(text, lambda name: folder.joinpath("registries", name).read_text(encoding="utf-8"))


def parse_em_datasets(text: str, registry: Callable[[str], str]) -> dict[str, EmDataset]:
    """Read a catalogue table.

    Args:
        text: CSV with exactly the columns of `em_datasets.csv`; archive, accession, mirrors and must_accept may be missing.
        registry: Returns the text of a registry by its file name.

    Returns:
        The rows by name.

    Raises:
        DataError: Columns or cells break rules; all problems are named at once.
    """
    reader = csv.DictReader(text.splitlines())
    columns = tuple(reader.fieldnames or ())
    if columns not in (_COLUMNS, _COLUMNS + _ARCHIVE_COLUMNS):
        raise DataError(f"em_datasets.csv has columns {reader.fieldnames}; expected {list(_COLUMNS)}.")
    found: dict[str, EmDataset] = {}
    problems: list[str] = []
    for row in reader:
        cells = dict.fromkeys(_ARCHIVE_COLUMNS, "") | {key: value or "" for key, value in row.items() if key is not None}
        try:
            if None in row or None in row.values():
                raise DataError(f"expected {len(columns)} cells")
            dataset = _dataset(cells, registry)
            if dataset.name in found:
                raise DataError("another row has the same name")
            found[dataset.name] = dataset
        except DataError as error:
            problems.append(f"line {reader.line_num} ({cells.get('name')}): {error}")
    if problems:
        raise DataError(f"em_datasets.csv has {len(problems)} problem(s):\n" + "\n".join(f"  - {line}" for line in problems))
    return found


def _dataset(cells: dict[str, str], registry: Callable[[str], str]) -> EmDataset:
    if not _NAME.fullmatch(cells["name"]):
        raise DataError(f"name is {cells['name']!r}; expected a-z, 0-9, '_', '-', '.', at most 63 characters")
    if cells["kind"] not in ("volume", "images", "video"):
        raise DataError(f"kind is {cells['kind']!r}; expected volume, images or video")
    if not cells["licence"] or not cells["citation"]:
        raise DataError("licence and citation must be given; write 'see source' where a licence is not known for sure")
    remote = _remote(cells)
    listed: dict[str, str] = {}
    if remote is None:
        if left := [name for name in _REMOTE_COLUMNS if cells[name]]:
            raise DataError(f"{', '.join(left)} only have a meaning with remote_url")
        has_list = cells["registry"] or not cells["archive"]
        listed = _registered(registry(cells["registry"])) if has_list else {}
    elif cells["base_url"] or cells["registry"]:
        raise DataError("it has both remote_url and base_url or registry; expected one of them")
    elif cells["archive"] or cells["mirrors"]:
        raise DataError("archive and mirrors only have a meaning without remote_url")
    if bool(cells["archive"]) != bool(cells["accession"]) or (cells["archive"] and cells["base_url"]):
        raise DataError("archive and accession must be given together, and instead of base_url")
    mirrors = tuple(cells["mirrors"].split())
    if bad := [url for url in mirrors if "://" not in url or not url.endswith("/")]:
        raise DataError(f"mirrors are {', '.join(bad)}; expected addresses of folders, with a slash at their end")
    sizes = [cells[name] for name in ("z_nm", "y_nm", "x_nm")]
    if remote is None and not all(sizes):
        raise DataError("z_nm, y_nm and x_nm must be given for datasets made of files")
    numbers = [_number(name, cells[name]) for name in ("z_nm", "y_nm", "x_nm") if cells[name]]
    return EmDataset(
        name=cells["name"],
        is_enabled=_yes(cells, "enabled"),
        kind=cells["kind"],
        voxel_size_nm=(numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None,
        licence=cells["licence"],
        citation=cells["citation"],
        organism=cells["organism"],
        tissue=cells["tissue"],
        technique=cells["technique"],
        source_url=cells["source_url"],
        base_url=cells["base_url"],
        files=listed,
        remote=remote,
        archive=cells["archive"],
        accession=cells["accession"],
        mirrors=mirrors,
        licence_must_be_accepted=bool(cells["must_accept"]) and _yes(cells, "must_accept"),
    )


def _registered(text: str) -> dict[str, str]:
    """Read the lines of a registry: a file name, blanks, and the sha256 of the file."""
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    if wrong := [" ".join(pair) for pair in pairs if len(pair) != 2]:
        raise DataError(f"its registry has the line {wrong[0]!r}; expected a file name and a sha256")
    return {pair[0]: pair[1] for pair in pairs}


def _remote(cells: dict[str, str]) -> RemoteSource | None:
    url = cells["remote_url"]
    if not url:
        return None
    if not url.startswith(("s3://", "gs://", "https://", "http://")) or url.endswith("/"):
        raise DataError(f"remote_url is {url!r}; expected s3://, gs:// or https://, without a slash at its end")
    if cells["remote_format"] not in REMOTE_FORMATS:
        raise DataError(f"remote_format is {cells['remote_format']!r}; expected one of {', '.join(REMOTE_FORMATS)}")
    for name in ("scale", "cube_px", "padding_value"):
        if not cells[name].isdecimal():
            raise DataError(f"{name} is {cells[name]!r}; expected a whole number")
    return RemoteSource(
        url=url,
        format=cells["remote_format"],
        scale=int(cells["scale"]),
        is_cropped=_yes(cells, "crop"),
        cube_px=int(cells["cube_px"]),
        is_inverted=_yes(cells, "invert"),
        padding_value=int(cells["padding_value"]),
        gigabytes=_number("gigabytes", cells["gigabytes"]),
    )


def _yes(cells: dict[str, str], name: str) -> bool:
    if cells[name] not in ("yes", "no"):
        raise DataError(f"{name} is {cells[name]!r}; expected yes or no")
    return cells[name] == "yes"


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{name} is {text!r}; expected a positive number")
    return value
