"""The catalogue of encoder weights: the rows of `weights.toml`, which are trained here or imported.

This module does not import torch, so that definitions load fast. It checks each row by itself.
`cem_assets.pretraining.rows` checks the hyperparameters and reads the rows of a store.
`cem_assets.pretraining.weights.importing` imports weights, and `cem_assets.pretraining.training.stage` trains them.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib.resources import files
from typing import Any, ClassVar

from cem_assets.errors import DataError

ARCHS = ("efficientnet_b0", "resnet18", "resnet34", "resnet50")
"""The keys of `cem_assets.encoders.ENCODERS`, repeated here because that module imports torch."""
METHODS = ("moco", "supervised", "swav")
PRESETS = ("paper", "single_gpu", "smoke")
DATASETS = ("cem", "cytoimagenet")
SUBSETS = ("", "toy_20", "toy_50")
SOURCES = ("random", "torchvision", "file")
NEWEST = "newest"
MIN_PREFIX = 8
"""A row must give at least so many digits of a sha256; the file names of torchvision end with so many."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.ASCII)
_RELEASE = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}|[0-9a-f]{64}", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}", re.ASCII)
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+/[!-~]*", re.ASCII)
_SHA256 = re.compile(rf"[0-9a-f]{{{MIN_PREFIX},64}}", re.ASCII)
_LAST_SEED = (1 << 31) - 1


@dataclass(frozen=True)
class TrainedWeights:
    """Weights that are trained from a release.

    Attributes:
        name: The partition key.
        title: A title for people.
        method: One of `METHODS`.
        preset: One of `PRESETS`.
        arch: One of `ARCHS`.
        dataset: The product line whose release is used: "cem" or "cytoimagenet".
        release: "newest", a version, or the digest of a release's manifest.
        subset: The classes of CytoImageNet: "" for all, "toy_20" or "toy_50".
        params: Hyperparameters that differ from the preset; they are not checked here.
    """

    kind: ClassVar[str] = "trained"

    name: str
    title: str
    method: str
    preset: str
    arch: str
    dataset: str
    release: str = NEWEST
    subset: str = ""
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ImportedWeights:
    """Weights that come from elsewhere, or from a seed.

    Attributes:
        name: The partition key.
        title: A title for people.
        source: "random", "torchvision" or "file".
        arch: One of `ARCHS`.
        method: "random", or one of `METHODS`.
        url: The address to download from; empty if there is none.
        sha256: All 64 digits of the file's sha256, or the first 8 or more. If it is empty, nothing is downloaded.
        file: The name of a local copy.
        seed: The seed of random weights.
        mean, std: Mean and standard deviation, in 0..1, of the pixels they were trained with, if the file does not have them.
        licence: The licence of the weights.
        data_licence: The licence of the data they were trained on.
        citation: The text by which they are cited.
        trained_on: The data they were trained on.
    """

    kind: ClassVar[str] = "imported"

    name: str
    title: str
    source: str
    arch: str
    method: str
    url: str = ""
    sha256: str = ""
    file: str = ""
    seed: int = 0
    mean: float | None = None
    std: float | None = None
    licence: str = ""
    data_licence: str = ""
    citation: str = ""
    trained_on: str = ""


WeightsRow = TrainedWeights | ImportedWeights
KINDS: dict[str, type[TrainedWeights] | type[ImportedWeights]] = {"trained": TrainedWeights, "imported": ImportedWeights}

_CHOICES = {
    "trained": {"method": METHODS, "preset": PRESETS, "arch": ARCHS, "dataset": DATASETS, "subset": SUBSETS},
    "imported": {"source": SOURCES, "arch": ARCHS, "method": ("random", *METHODS)},
}
_EXAMPLE = """\
[my_swav]
kind = "trained"
title = "SwAV on the newest release, half as long"
method = "swav"
preset = "single_gpu"
arch = "resnet50"
dataset = "cem"
params = { epochs = 50 }
"""


@lru_cache(maxsize=1)
def _package_text() -> str:
    return files("cem_assets.catalog").joinpath("weights.toml").read_text(encoding="utf-8")


def weights_rows(text: str | None = None, what: str = "weights.toml") -> dict[str, WeightsRow]:
    """Read rows of weights.

    Args:
        text: TOML with one table for each row; None reads the catalogue of this package.
        what: The name of the file in errors.

    Returns:
        Rows by name, in the order of the file.

    Raises:
        DataError: The text is not TOML, or rows are wrong; the error names every problem with its row.
    """
    try:
        data = tomllib.loads(_package_text() if text is None else text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{what} is not valid TOML: {error}. An example of a row:\n{_EXAMPLE}") from error
    rows: dict[str, WeightsRow] = {}
    problems: list[str] = []
    for name, table in data.items():
        found = _table_problems(name, table)
        if not found:
            row = KINDS[table["kind"]](name=name, **{key: value for key, value in table.items() if key != "kind"})
            found = _trained_problems(row) if isinstance(row, TrainedWeights) else _imported_problems(row)
            rows[name] = row
        problems += [f"{name[:80]}: {problem}" for problem in found]
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{what} has {len(problems)} problem(s):\n{listing}\nAn example of a row:\n{_EXAMPLE}")
    return rows


def _table_problems(name: str, table: Any) -> list[str]:
    """Return what is wrong with a row's name, its kind, its keys and their types."""
    problems = []
    if not _NAME.fullmatch(name) or ".." in name:
        problems.append("a name has 1 to 64 of a-z, 0-9, '_', '.', '-', begins with a letter or digit, and has no '..'")
    if not isinstance(table, dict):
        return [*problems, f"found {table!r:.80} where a table was expected"]
    if table and all(isinstance(value, dict) for value in table.values()):
        return [*problems, 'it holds only tables; a name with a dot is written in quotes: ["cem1.5m_swav"]']
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return [*problems, f"kind is {kind!r:.80}; expected one of {', '.join(KINDS)}"]
    expected = {item.name: item for item in fields(KINDS[kind]) if item.name != "name"}
    problems += [f"unknown key {key!r:.80}; expected {', '.join(expected)}" for key in table if key not in (*expected, "kind")]
    needed = ["title", *(key for key in _CHOICES[kind] if key != "subset")]
    problems += [f"{key} is missing" for key in needed if key not in table]
    for key, value in table.items():
        if key in ("mean", "std"):
            is_right = isinstance(value, int | float) and not isinstance(value, bool)
        elif key == "seed":
            is_right = type(value) is int
        else:
            is_right = isinstance(value, dict if key == "params" else str)
        if key in expected and not is_right:
            what = {"mean": "a number", "std": "a number", "seed": "a whole number", "params": "a table"}.get(key, "a text")
            problems.append(f"{key} is {value!r:.80}; expected {what}")
        elif key in _CHOICES[kind] and value not in _CHOICES[kind][key]:
            problems.append(f"{key} is {value!r:.80}; expected one of {', '.join(repr(item) for item in _CHOICES[kind][key])}")
    return problems


def _trained_problems(row: TrainedWeights) -> list[str]:
    problems = [] if row.title.strip() else ["title is empty"]
    if not _RELEASE.fullmatch(row.release) or ".." in row.release:
        problems.append(f'release is {row.release!r:.80}; expected "{NEWEST}", a version such as "v3", or 64 hex digits')
    if row.subset and row.dataset != "cytoimagenet":
        problems.append(f"subset is {row.subset!r}; only cytoimagenet has subsets")
    if row.method == "supervised" and row.dataset != "cytoimagenet":
        problems.append("supervised training needs classes; expected dataset = 'cytoimagenet'")
    return problems


def _imported_problems(row: ImportedWeights) -> list[str]:
    problems = [] if row.title.strip() else ["title is empty"]
    if row.file and not _FILE.fullmatch(row.file):
        problems.append(f"file is {row.file!r:.80}; expected a plain file name, without a folder")
    if row.url and not _URL.fullmatch(row.url):
        problems.append(f"url is {row.url!r:.120}; expected https://host/path without a password or blanks")
    if row.sha256 and not _SHA256.fullmatch(row.sha256):
        problems.append(f"sha256 is {row.sha256!r:.80}; expected 64 hex digits, or the first {MIN_PREFIX} or more")
    elif row.url.startswith("http://") and len(row.sha256) < 64:
        problems.append("url is not https; expected https://, or all 64 digits of sha256")
    if not 0 <= row.seed <= _LAST_SEED:
        problems.append(f"seed is {row.seed}; expected 0 to {_LAST_SEED}")
    if (row.mean is None) != (row.std is None):
        problems.append("mean and std come together; one is missing")
    elif (
        row.mean is not None
        and row.std is not None
        and not (0 <= row.mean <= 1 and 0 < row.std <= 1 and math.isfinite(row.std))
    ):
        problems.append(f"mean {row.mean} and std {row.std} are not of pixels in 0..1")
    if row.source == "random":
        given = [key for key in ("url", "sha256", "file", "trained_on", "data_licence") if getattr(row, key)]
        problems += [f"{key} says nothing of random weights; leave it out" for key in given]
        if row.method != "random":
            problems.append(f"method is {row.method!r}; expected 'random' for source 'random'")
        return problems
    problems += [
        f"{key} is missing" for key in ("file", "licence", "data_licence", "trained_on", "citation") if not getattr(row, key)
    ]
    if row.method == "random":
        problems.append("method is 'random'; expected how the weights were trained")
    if row.seed:
        problems.append("seed is of random weights alone; leave it out")
    return problems
