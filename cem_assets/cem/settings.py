"""`settings/cem.toml` of the store: parameters other than the defaults, for all datasets or for one.

What the sensors ask for follows these; a person may still materialize with any other parameters in the
launchpad, and reconciliation then brings the partition back to what is written here.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from cem_assets.cem.filter.params import FilterParams, ScoreParams
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import PatchifyParams
from cem_assets.errors import DataError
from cem_assets.store.assets import DEDUPLICATED, FILTERED, RAW, SCORES
from cem_assets.store.store import Store

SETTINGS = "settings/cem.toml"

PARAMETERS: dict[str, type[BaseModel]] = {
    RAW: PatchifyParams,
    DEDUPLICATED: DedupParams,
    SCORES: ScoreParams,
    FILTERED: FilterParams,
}
"""The parameter model of every asset that has parameters."""

_PLACES = {"device"}
"""Parameters that say where a thing is computed, not what; they are no part of a manifest."""

_EXAMPLE = """\
relaunch_gpu = false            # whether stale scores are computed again without being asked for

[parameters.filtered_patches]   # for every dataset
threshold = 0.6

[datasets.vnc.deduplicated_patches]
max_distance = 10
"""


@dataclass(frozen=True)
class Settings:
    """What the operator wants.

    Attributes:
        relaunch_gpu: Whether scores that are stale by code or by a new classifier are computed again.
        overrides: Values by (dataset or "" for all, asset).
    """

    relaunch_gpu: bool = False
    overrides: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)

    def config(self, dataset: str, asset: str) -> dict[str, Any]:
        """Return the values that differ from the defaults, as Dagster config."""
        return {**self.overrides.get(("", asset), {}), **self.overrides.get((dataset, asset), {})}

    def parameters(self, dataset: str, asset: str) -> dict[str, Any]:
        """Return every parameter of an asset for a dataset, as a manifest records them."""
        model = PARAMETERS.get(asset)
        if model is None:
            return {}
        return model.model_validate(self.config(dataset, asset)).model_dump(mode="json", exclude=_PLACES)


def read_settings(store: Store) -> Settings:
    """Read the settings of a store; the defaults where there is no file.

    Raises:
        DataError: The file is not TOML, or names assets, parameters or values that there are not; all at once.
    """
    try:
        data = tomllib.loads(store.read(SETTINGS).decode("utf-8-sig"))
    except FileNotFoundError:
        return Settings()
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{SETTINGS} is not valid TOML in UTF-8: {error}. An example:\n{_EXAMPLE}") from error
    problems = [f"unknown key {key!r}" for key in data if key not in ("relaunch_gpu", "parameters", "datasets")]
    relaunch_gpu = data.get("relaunch_gpu", False)
    if not isinstance(relaunch_gpu, bool):
        problems.append(f"relaunch_gpu is {relaunch_gpu!r}; expected true or false")
    overrides: dict[tuple[str, str], dict[str, Any]] = {}
    tables = [("", data.get("parameters", {})), *_tables(data.get("datasets", {}), problems)]
    for dataset, groups in tables:
        for name, values in _tables(groups, problems):
            asset = f"cem/{name}"
            if asset not in PARAMETERS:
                known = ", ".join(key.removeprefix("cem/") for key in PARAMETERS)
                problems.append(f"{name!r} has no parameters; expected one of {known}")
                continue
            problems += [f"{name}.{text}" for text in _misfits(PARAMETERS[asset], values)]
            overrides[dataset, asset] = dict(values)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{SETTINGS} has {len(problems)} problem(s):\n{listing}\nAn example:\n{_EXAMPLE}")
    return Settings(relaunch_gpu, overrides)


def _tables(value: Any, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(value, dict):
        problems.append(f"found {value!r:.80} where a table was expected")
        return []
    found = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            found.append((key, inner))
        else:
            problems.append(f"{key} = {inner!r:.80} stands where a table was expected")
    return found


def _misfits(model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    texts = [f"{key}: unknown; expected {', '.join(model.model_fields)}" for key in values if key not in model.model_fields]
    try:
        model.model_validate(values)
    except ValidationError as error:
        texts += [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']} (found {item['input']!r:.80})"
            for item in error.errors()
        ]
    return texts
