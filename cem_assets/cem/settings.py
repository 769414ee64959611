"""`settings/cem.toml` in the store: parameters that differ from the defaults, for all datasets or for one.

The runs that sensors request have these parameters. A person may materialize a partition with other parameters in the
launchpad; reconciliation then makes the partition again with the parameters of this file.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from cem_assets.cem.classifier.params import ScoreParams
from cem_assets.cem.filter.params import FilterParams
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
"""The parameter models of the assets that can have settings."""

_PLACES = {"device"}
"""Parameters that decide where something is computed and not what. They are not recorded in manifests."""

_EXAMPLE = """\
relaunch_gpu = false            # whether stale scores are computed again automatically

[parameters.filtered_patches]   # for every dataset
threshold = 0.6

[datasets.vnc.deduplicated_patches]
max_distance = 10
"""


@dataclass(frozen=True)
class Settings:
    """The operator's settings.

    Attributes:
        relaunch_gpu: Whether scores are computed again automatically if their code or the classifier changed.
        overrides: Values by (dataset, asset); the dataset is "" for values that hold for all datasets.
    """

    relaunch_gpu: bool = False
    overrides: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)

    def config(self, dataset: str, asset: str) -> dict[str, Any]:
        """Return the parameters that are set for an asset of a dataset, as Dagster config."""
        return {**self.overrides.get(("", asset), {}), **self.overrides.get((dataset, asset), {})}

    def parameters(self, dataset: str, asset: str) -> dict[str, Any]:
        """Return all parameters of an asset for a dataset, as a manifest records them."""
        model = PARAMETERS.get(asset)
        if model is None:
            return {}
        return model.model_validate(self.config(dataset, asset)).model_dump(mode="json", exclude=_PLACES)


def read_settings(store: Store) -> Settings:
    """Read the settings of a store, or return the defaults if there is no file.

    Raises:
        DataError: The file is not TOML, or has unknown assets, parameters or values. The error lists all problems.
    """
    try:
        data = tomllib.loads(store.read(SETTINGS).decode("utf-8-sig"))
    except FileNotFoundError:
        return Settings()
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
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
            problems.append(f"{key} = {inner!r:.80} was found where a table was expected")
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
