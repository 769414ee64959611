"""The benchmarks of a store: the shipped catalogue, changed and extended by the store's `settings/benchmarks.toml`."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cem_assets.benchmarks.data.preparation import step_problems
from cem_assets.benchmarks.segmentation.params import EvaluationRule, SegmentationParams
from cem_assets.catalog.benchmarks import SETTINGS, AnyBenchmark, SegmentationBenchmark, benchmark_rows, benchmark_tables
from cem_assets.errors import DataError, UnknownNameError
from cem_assets.store.store import Store


def known_benchmarks(store: Store) -> dict[str, AnyBenchmark]:
    """Read the benchmarks of a store.

    A table of the store's file that has the name of a row of the catalogue replaces single keys of that row, and single
    parameters in `params`. Any other table is a benchmark of your own.

    Returns:
        Rows by name: those of the catalogue, then the store's own.

    Raises:
        DataError: The file is not valid; the error lists all problems.
    """
    tables = {name: dict(table) for name, table in benchmark_tables().items()}
    where = "benchmarks.toml"
    if store.size(SETTINGS) is not None:
        where = SETTINGS
        try:
            text = store.read(SETTINGS).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{SETTINGS} is not UTF-8: {error}. Save it as UTF-8.") from error
        for name, table in benchmark_tables(text, SETTINGS).items():
            tables[name] = _laid_over(tables.get(name, {}), table)
    rows = benchmark_rows(tables=tables, where=where)
    segmentation = [row for row in rows.values() if isinstance(row, SegmentationBenchmark)]
    problems = [f"{row.name}: {problem}" for row in segmentation for problem in _problems(row)]
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{where} has {len(problems)} problem(s):\n{listing}")
    return rows


def _problems(row: SegmentationBenchmark) -> list[str]:
    found = [problem for step in row.steps for problem in step_problems(step.step, step.parameters)]
    try:
        SegmentationParams.model_validate(row.params)
    except ValidationError as error:
        found += [f"params.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    for part in row.union:
        try:
            EvaluationRule(**part.rule)
        except TypeError as error:
            found.append(f"rule of {part.benchmark}: {error}")
    if row.params.get("test_mode") == "mixed" and not row.union:
        found.append('test_mode = "mixed" is for a union, whose parts bring their own rules')
    return found


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    if isinstance(below.get("params"), Mapping) and isinstance(above.get("params"), Mapping):
        merged["params"] = {**below["params"], **above["params"]}
    return merged


def require_benchmark(store: Store, name: str) -> AnyBenchmark:
    """Return the row of a benchmark.

    Raises:
        UnknownNameError: Neither the catalogue nor the store has it; the error lists those that exist.
    """
    rows = known_benchmarks(store)
    if name not in rows:
        raise UnknownNameError(
            f"there is no benchmark {name!r}; there are {', '.join(rows)}. Add a table [{name}] to {SETTINGS}."
        )
    return rows[name]
