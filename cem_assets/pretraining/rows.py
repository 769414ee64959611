"""Reads the rows of `pretraining/weights` that a store knows, and checks the hyperparameters of those that are trained.

Rows come from `cem_assets.catalog.weights` and from `settings/weights.toml` of the store. This module does not import torch.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cem_assets.catalog.weights import TrainedWeights, WeightsRow, weights_rows
from cem_assets.errors import DataError
from cem_assets.pretraining.methods.params import PARAMS, PRESETS, MethodParams, params_for
from cem_assets.store.store import Store

ROWS = "settings/weights.toml"
"""Rows of the store, in the form of the package's `weights.toml`."""
_MAX_ROWS_BYTES = 4 << 20


def known_weights(store: Store) -> dict[str, WeightsRow]:
    """Read the rows of the package and of the store by name, as `stored_weights_rows` does, and check their parameters.

    Raises:
        DataError: Rows or their parameters cannot be used; the text names all problems.
    """
    rows = stored_weights_rows(store)
    problems = [
        f"{row.name}: {problem}" for row in rows.values() if isinstance(row, TrainedWeights) for problem in params_problems(row)
    ]
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{ROWS} has {len(problems)} problem(s) in the parameters of trained weights:\n{listing}")
    return rows


def params_of(row: TrainedWeights, **overrides: Any) -> MethodParams:
    """Make the hyperparameters of a row from its preset, its own parameters and the overrides, of which the last ones count.

    Args:
        **overrides: Fields to change, as for `cem_assets.pretraining.methods.params.params_for`.

    Raises:
        DataError: Fields are not known or values cannot be used; the text names all of them.
    """
    params, problems = _checked_params(row, overrides)
    if params is None:
        raise DataError(f"the parameters of weights {row.name} cannot be used: {'; '.join(problems)}.")
    return params


def params_problems(row: TrainedWeights, **overrides: Any) -> list[str]:
    """List the problems of a row's hyperparameters; the list is empty where there are none."""
    return _checked_params(row, overrides)[1]


def _checked_params(row: TrainedWeights, overrides: Mapping[str, Any]) -> tuple[MethodParams | None, list[str]]:
    """Return the hyperparameters of a row, or None and what is wrong with them."""
    values = {**row.params, **overrides}
    if row.method not in PARAMS or row.preset not in PRESETS[row.method]:
        return None, [f"method {row.method!r} has no preset {row.preset!r}"]
    known = PARAMS[row.method].model_fields
    problems = [f"{key}: unknown to {row.method}; expected {', '.join(known)}" for key in values if key not in known]
    params = None
    try:
        params = params_for(row.method, row.preset, **{key: value for key, value in values.items() if key in known})
    except ValidationError as error:
        problems += [
            f"{'.'.join(str(part) for part in item['loc']) or 'together'}: {item['msg']} (found {_shown(item)})"
            for item in error.errors()
        ]
    return (None, problems) if problems else (params, [])


def _shown(item: Any) -> str:
    """Show the value of a problem; a problem of several fields has all of them as its value, which would be too long."""
    return f"{item['input']!r:.80}" if item["loc"] else "these values side by side"


def stored_weights_rows(store: Store) -> dict[str, WeightsRow]:
    """Read the rows of the package and those of `settings/weights.toml` in the store.

    A row of the store replaces the whole row of the package with the same name. Both must be trained, or both imported,
    because the name would otherwise get another meaning.

    Raises:
        DataError: `settings/weights.toml` is too large, not TOML in UTF-8, or has rows that cannot be used.
    """
    rows = dict(weights_rows())
    size = store.size(ROWS)
    if size is None:
        return rows
    if size > _MAX_ROWS_BYTES:
        raise DataError(f"{ROWS} has {size:,} bytes; expected at most {_MAX_ROWS_BYTES:,}. Keep only rows of weights in it.")
    try:
        text = store.read(ROWS).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{ROWS} is not UTF-8: {error}. Save it as UTF-8.") from error
    added = weights_rows(text, ROWS)
    turned = [name for name, row in added.items() if name in rows and rows[name].kind != row.kind]
    if turned:
        told = "; ".join(f"{name} is {rows[name].kind} in the package's catalogue, {added[name].kind} here" for name in turned)
        raise DataError(f"{ROWS} changes the kind of {len(turned)} row(s): {told}. Give them other names.")
    return rows | added
