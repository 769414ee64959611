"""The description of an EM dataset by its curator: the contents of `dataset.toml`, validated.

A dataset is a folder of the inbox that holds files and a `dataset.toml`. The error for a wrong `dataset.toml` lists all
problems at once. `cem_assets.inbox.datasets` reads the folder.
"""

import difflib
import re
import tomllib
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from cem_assets.errors import DataError
from cem_assets.imaging.intensity import Policy

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.ASCII)
MAX_TOML_BYTES = 1 << 16

EXAMPLE = """\
name = "my_dataset"
kind = "volume"                       # "volume", "images" or "video"
voxel_size_nm = [40.0, 4.6, 4.6]      # z, y, x; for kind = "images": pixel_size_nm = [y, x]
licence = "CC BY 4.0"
citation = "Author et al., Journal 2026, doi:..."
"""

_LATER_KEYS = frozenset({"target_voxel_size_nm", "sampling"})
_Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def check_dataset_name(name: str) -> str | None:
    """Return what is wrong with the name of a dataset, or None.

    Names become folders, partition keys and tags, so only characters that all of these allow may be used.
    """
    if NAME_PATTERN.fullmatch(name) and ".." not in name and not name.endswith("."):
        return None
    shown = name if len(name) <= 80 else f"{name[:77]}..."
    return (
        f"dataset name {shown!r} ({len(name)} characters) is not allowed; expected 1 to 63 of a-z, 0-9, '_', '-' "
        "and single '.', beginning with a letter or digit. Rename the dataset."
    )


class LocalSampling(BaseModel):
    """Which cubes of a large local volume are taken: the table [sampling] of `dataset.toml`.

    Attributes:
        cube_px: Side of a cube in voxels of the file.
        min_content: The smallest share of a cube's voxels that must not be padding.
        gigabytes: Budget for each volume in 10^9 bytes: the size of the cubes' voxels in the number type of the file.
        seed: Seed of the draw.
        padding_value: The source value that marks voxels without data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cube_px: Annotated[int, Field(ge=64, le=1024)] = 256
    min_content: Annotated[float, Field(ge=0, le=1)] = 0.7
    gigabytes: Annotated[float, Field(gt=0, le=10_000)] = 5.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    padding_value: int = 0


class DatasetDescription(BaseModel):
    """One EM dataset as its curator declares it.

    Attributes:
        name: The name, which is also the partition key.
        kind: "volume": every volume file, and every folder of 2D slices, is one volume. "images": every file is one 2D image.
            "video": like a volume, but patches are cut in xy only.
        voxel_size_nm: (z, y, x) in nm, for volumes and videos. It replaces the size in the headers of files.
        pixel_size_nm: (y, x) in nm, for images.
        licence: The licence of the data, in words or as SPDX identifier.
        citation: The text by which the data are cited.
        intensity: How voxels become uint8; None means identity for uint8 and percentile otherwise.
        intensity_percentiles: The percentiles that become 0 and 255 under "percentile".
        intensity_window: The source values that become 0 and 255 under "window".
        hdf5_dataset: Path of the array inside HDF5 files.
        zarr_array: Path of the array inside Zarr and N5 stores that hold several.
        channel: The channel that is taken from files with a channel axis of stains or detectors.
        target_voxel_size_nm: Axes finer than this are binned by 2 as long as they stay at or below it; None bins nothing.
        sampling: Which cubes are taken of each volume; None takes whole volumes.
        organism, tissue, technique: Texts for the dataset card.
        source_url: The address the data came from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    name: str
    kind: Literal["volume", "images", "video"]
    voxel_size_nm: tuple[_Size, _Size, _Size] | None = None
    pixel_size_nm: tuple[_Size, _Size] | None = None
    licence: Annotated[str, Field(min_length=1, max_length=500)]
    citation: Annotated[str, Field(min_length=1, max_length=4000)]
    intensity: Policy | None = None
    intensity_percentiles: tuple[float, float] = (0.1, 99.9)
    intensity_window: tuple[float, float] | None = None
    hdf5_dataset: str | None = None
    zarr_array: str | None = None
    channel: Annotated[int, Field(ge=0)] | None = None
    target_voxel_size_nm: _Size | None = None
    sampling: LocalSampling | None = None
    organism: str = ""
    tissue: str = ""
    technique: str = ""
    source_url: str = ""

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if problem := check_dataset_name(name):
            raise DataError(problem)
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> "DatasetDescription":
        problems = []
        if self.kind == "images":
            if self.pixel_size_nm is None:
                problems.append('kind = "images" needs pixel_size_nm = [y, x]')
            if self.voxel_size_nm is not None:
                problems.append('voxel_size_nm is for volumes; kind = "images" takes pixel_size_nm = [y, x]')
        else:
            if self.voxel_size_nm is None:
                problems.append(f'kind = "{self.kind}" needs voxel_size_nm = [z, y, x]')
            if self.pixel_size_nm is not None:
                problems.append(f'pixel_size_nm is for images; kind = "{self.kind}" takes voxel_size_nm = [z, y, x]')
        low, high = self.intensity_percentiles
        if not 0 <= low < high <= 100:
            problems.append(f"intensity_percentiles must be 0 <= low < high <= 100, found [{low}, {high}]")
        if self.intensity == "window" and self.intensity_window is None:
            problems.append('intensity = "window" needs intensity_window = [low, high]')
        if self.intensity_window is not None:
            if self.intensity != "window":
                problems.append('intensity_window only has a meaning with intensity = "window"')
            if not self.intensity_window[0] < self.intensity_window[1]:
                problems.append(f"intensity_window must be [low, high] with low < high, found {self.intensity_window}")
        if self.sampling is not None and self.kind != "volume":
            problems.append(f'[sampling] takes cubes of volumes; kind = "{self.kind}" has none')
        if problems:
            raise DataError("; ".join(problems))
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys of later versions that are not used, so that the digests of older descriptions stay the same."""
        data: dict[str, Any] = handler(self)
        return {key: value for key, value in data.items() if value is not None or key not in _LATER_KEYS}

    def voxel_size(self) -> tuple[float, float, float]:
        """Return (z, y, x) in nm; the z of a 2D image equals its y."""
        if self.voxel_size_nm is not None:
            return self.voxel_size_nm
        assert self.pixel_size_nm is not None  # the validator ensures it
        return (self.pixel_size_nm[0], *self.pixel_size_nm)


def parse_description(text: bytes, where: str) -> DatasetDescription:
    """Read a `dataset.toml`.

    Args:
        where: The name of the file in errors, such as "inbox/vnc/dataset.toml".

    Raises:
        DataError: The file is not TOML in UTF-8, or breaks rules; the error names all problems.
    """
    if len(text) > MAX_TOML_BYTES:
        raise DataError(f"{where} has {len(text)} bytes; expected at most {MAX_TOML_BYTES}. Shorten it.")
    try:
        data = tomllib.loads(text.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not valid TOML in UTF-8: {error}. An example:\n{EXAMPLE}") from error
    try:
        return DatasetDescription.model_validate(data)
    except ValidationError as error:
        lines = [_in_words(problem, data) for problem in error.errors()]
        listing = "\n".join(f"  - {line}" for line in lines)
        raise DataError(f"{where} has {len(lines)} problem(s):\n{listing}\nAn example:\n{EXAMPLE}") from error


def _in_words(problem: Any, data: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        owner = LocalSampling if problem["loc"][0] == "sampling" and len(problem["loc"]) > 1 else DatasetDescription
        known = list(owner.model_fields)
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.45)
        hint = f'did you mean "{close[0]}"?' if close else f"known keys: {', '.join(known)}."
        return f'unknown key "{key}"; {hint}'
    if problem["type"] == "missing":
        return f'key "{key}" is missing'
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not key:
        return message
    top = data.get(str(problem["loc"][0]))
    return message if key == "name" and isinstance(top, str) else f"{key}: {message} (found {top!r:.200})"
