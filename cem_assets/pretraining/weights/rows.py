"""The rows of `pretraining/weights` that a store knows, and the hyperparameters of those that are trained.

Rows are `cem_assets.catalog.weights` and `settings/weights.toml` of the store (`cem_assets.pretraining.weights.stored`);
here their parameters meet the methods' models. Nothing here needs torch.
"""

from typing import Any

from pydantic import ValidationError

from cem_assets.catalog.weights import TrainedWeights, WeightsRow
from cem_assets.errors import DataError
from cem_assets.pretraining.methods.params import PARAMS, PRESETS, MethodParams, params_for
from cem_assets.pretraining.weights.stored import ROWS, stored_weights_rows
from cem_assets.store.store import Store


def known_weights(store: Store) -> dict[str, WeightsRow]:
    """Read all rows: the package's, overlaid by those of `settings/weights.toml` of the store.

    A row of the store takes the place of a whole row of the package with the same name and kind.

    Returns:
        Rows by name; every trained one has parameters that `params_of` takes.

    Raises:
        DataError: Rows or their parameters make no sense; all problems are named.
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
    """Make the hyperparameters of a row: its preset's, changed by its own, changed by those given.

    Args:
        row: Which weights.
        **overrides: Fields to change, as for `cem_assets.pretraining.methods.params.params_for`.

    Raises:
        DataError: A field is not known or a value makes no sense; all of them are named.
    """
    if problems := params_problems(row, **overrides):
        raise DataError(f"the parameters of weights {row.name} cannot be used: {'; '.join(problems)}.")
    return params_for(row.method, row.preset, **{**row.params, **overrides})


def params_problems(row: TrainedWeights, **overrides: Any) -> list[str]:
    """Say what is wrong with the hyperparameters of a row; empty where nothing is."""
    values = {**row.params, **overrides}
    if row.method not in PARAMS or row.preset not in PRESETS[row.method]:
        return [f"method {row.method!r} has no preset {row.preset!r}"]
    known = PARAMS[row.method].model_fields
    problems = [f"{key}: unknown to {row.method}; expected {', '.join(known)}" for key in values if key not in known]
    try:
        params_for(row.method, row.preset, **{key: value for key, value in values.items() if key in known})
    except ValidationError as error:
        problems += [
            f"{'.'.join(str(part) for part in item['loc']) or 'together'}: {item['msg']} (found {_shown(item)})"
            for item in error.errors()
        ]
    return problems


def _shown(item: Any) -> str:
    """Show what was found; a complaint about several fields has all of them as its input, which tells little."""
    return f"{item['input']!r:.80}" if item["loc"] else "these values side by side"
