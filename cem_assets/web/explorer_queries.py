"""Queries the tables of a store with DuckDB.

Everything that a page sends is checked by `Selection` and reaches SQL as a bound parameter; the text of every query is put
together from the literal pieces below. The connection can open files in the store's folder and in the column cache and no
others, and this setting is locked.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import duckdb
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.errors import DataError
from cem_assets.web.column_cache import TableContent
from cem_assets.web.explorer_tables import CYTO_STAGES, StoreTables

MAX_ROWS = 200
MEMORY_LIMIT = "1GiB"
NUM_BINS = 40
_CACHED_ANSWERS = 256
_MAX_FACET_VALUES = 100

_Text = Annotated[str, Field(max_length=300)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Selection(BaseModel):
    """The rows that a page shows and their order; the address of the page holds it.

    Attributes:
        stage: One of `cem_assets.web.explorer_tables.STAGES`.
        version: Version of a release.
        partition: Dataset or key of a label; empty for all.
        text: Text to find in the name of a patch, or in any text of a crop. Case matters only where the text has capitals.
        volume, axis, index_from, index_to: Place of the patches.
        score_from, score_to: Bounds of the informative probability, both inclusive.
        duplicates_from, duplicates_to: Bounds of the number of patches an exemplar stands for besides itself.
        fate: Whether patches were kept, or why they were dropped.
        category, source, licence, split, scale_from, scale_to: Conditions on crops.
        sort: A key of `PATCH_SORTS` or `CROP_SORTS`.
        seed: Seed of the order "random".
        offset, limit: First row and number of rows that are shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["raw", "deduplicated", "scores", "filtered", "release", "crops", "cyto_release"]
    version: Annotated[str, Field(max_length=40)] = ""
    partition: Annotated[str, Field(max_length=200)] = ""
    text: _Text = ""
    volume: Annotated[str, Field(max_length=1024)] | None = None
    axis: Annotated[int, Field(ge=-1, le=2)] | None = None
    index_from: _Count | None = None
    index_to: _Count | None = None
    score_from: _Share | None = None
    score_to: _Share | None = None
    duplicates_from: _Count | None = None
    duplicates_to: _Count | None = None
    fate: Literal["kept", "duplicate", "uninformative", "over max_patches", "undecided"] | None = None
    category: _Text | None = None
    source: _Text | None = None
    licence: _Text | None = None
    split: _Text | None = None
    scale_from: _Scale | None = None
    scale_to: _Scale | None = None
    sort: Literal["", "score_down", "score_up", "duplicates_down", "name", "random", "scale_down", "scale_up"] = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    offset: _Count = 0
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 60

    @property
    def is_cyto(self) -> bool:
        return self.stage in CYTO_STAGES


PATCH_FILTERS = {
    "volume": "volume = ?",
    "axis": "axis = ?",
    "index_from": '"index" >= ?',
    "index_to": '"index" <= ?',
    "score_from": "informative >= ?",
    "score_to": "informative <= ?",
    "duplicates_from": "num_duplicates >= ?",
    "duplicates_to": "num_duplicates <= ?",
}
CROP_FILTERS = {
    "category": "category = ?",
    "source": "source = ?",
    "licence": "licence = ?",
    "split": "split = ?",
    "scale_from": "scaling >= ?",
    "scale_to": "scaling <= ?",
}
_PATCH_TEXT = ("contains(name, ?)", "contains(lower(name), ?)")
_WORDS = (
    "concat_ws(' ', label, filename, source_path, idx, organism, cell_type, cell_visible, phenotype, compound, gene, sirna)"
)
_CROP_TEXT = (f"contains({_WORDS}, ?)", f"contains(lower({_WORDS}), ?)")
# Ties are broken by a hash, so that pages neither repeat rows nor leave any out.
_PATCH_TIE, _CROP_TIE = "hash(dataset, name)", "hash(partition, filename)"
PATCH_SORTS = {
    "score_down": f"informative DESC, {_PATCH_TIE}",
    "score_up": f"informative, {_PATCH_TIE}",
    "duplicates_down": f"num_duplicates DESC, {_PATCH_TIE}",
    "name": "name, dataset",
    "random": "hash(dataset, name, ?), name",
}
CROP_SORTS = {
    "scale_down": f"scaling DESC, {_CROP_TIE}",
    "scale_up": f"scaling, {_CROP_TIE}",
    "name": "filename, partition",
    "random": "hash(partition, filename, ?), filename",
}
_PATCH_COLUMNS = ("dataset", "name", "volume", "axis", "index", "y0", "y1", "x0", "x1", "num_duplicates", "informative")
_CROP_COLUMNS = ("partition", "filename", "label", "category", "source", "licence", "split", "scaling", "height", "width")
_PLACE = ("part", "row_group")
_PATCH_FACETS = {"dataset": "dataset", "volume": "volume", "axis": "axis"}
_CROP_FACETS = {name: name for name in ("category", "source", "licence", "split")} | {"partition": "label"}
_BINS = {
    "informative": f"least(floor(informative * {NUM_BINS}), {NUM_BINS - 1})::INTEGER",
    "scaling": f"least(floor(scaling * {NUM_BINS}), {NUM_BINS - 1})::INTEGER",
}
_NEEDS = {
    "score_from": "informative", "score_to": "informative", "score_down": "informative", "score_up": "informative",
    "duplicates_from": "num_duplicates", "duplicates_to": "num_duplicates", "duplicates_down": "num_duplicates",
}  # fmt: skip
HAS_COLUMN = {
    "num_duplicates": ("deduplicated", "scores", "filtered", "release"),
    "informative": ("scores", "filtered", "release"),
}
HAS_FATE = ("raw", "deduplicated", "scores")


@dataclass(frozen=True)
class _Source:
    """A source of rows: the SQL text after FROM, and the values bound in it."""

    sql: str
    parameters: tuple[Any, ...]


class Questions:
    """Answers queries about the rows of a store; safe to use from several threads.

    Args:
        num_threads: Number of threads of DuckDB; None takes all cores.
    """

    def __init__(self, catalogue: StoreTables, num_threads: int | None = None) -> None:
        self._catalogue = catalogue
        store, cache = catalogue.store, catalogue.cache
        config: dict[str, Any] = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(cache.folder / "spill")}
        config |= {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        self._connection = duckdb.connect(":memory:", config=config | ({"threads": num_threads} if num_threads else {}))
        folders = [f"{cache.folder}/", *([f"{store.url}/"] if store.is_local else [])]
        quoted = ", ".join("'" + folder.replace("'", "''") + "'" for folder in folders)
        self._connection.execute(f"SET allowed_directories = [{quoted}]")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")
        self._answers: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, sql: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
        """Run one query and return its rows as dictionaries."""
        with self._connection.cursor() as cursor:
            found = cursor.execute(sql, list(parameters))
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def rows(self, selection: Selection) -> list[dict[str, Any]]:
        """Return the rows of a page, each with its `fate` (and the `exemplar` and `distance` of a duplicate) where it is known.

        Raises:
            DataError: A filter or an order does not apply to the stage.
            FileNotFoundError: Nothing is committed there.
        """
        tables = self._tables(selection)
        source, where, bound = self._filtered(selection, tables)
        columns: tuple[str, ...] = _CROP_COLUMNS if selection.is_cyto else _PATCH_COLUMNS
        columns = tuple(name for name in columns if selection.stage in HAS_COLUMN.get(name, (selection.stage,)))
        if tables[0].has_pixels:
            columns += _PLACE
        listed = ", ".join(f'"{name}"' for name in columns)
        sorts = CROP_SORTS if selection.is_cyto else PATCH_SORTS
        order = f"ORDER BY {sorts[selection.sort]}" if selection.sort else ""
        seeds = (selection.seed,) if selection.sort == "random" else ()
        sql = f"SELECT {listed} FROM {source.sql} {where} {order} LIMIT ? OFFSET ?"  # noqa: S608 (literal pieces only)
        found = self.ask(sql, (*source.parameters, *bound, *seeds, selection.limit, selection.offset))
        version_of = {table.partition: table.key[:16] for table in tables}
        for row in found:
            row["v"] = version_of[row["partition" if selection.is_cyto else "dataset"]]
        if selection.stage in HAS_FATE:
            self._add_fates(selection.stage, found)
        elif not selection.is_cyto:
            for row in found:
                row["fate"] = "kept"
        return found

    def count(self, selection: Selection) -> int:
        """Count the rows of a selection on all of its pages."""
        tables = self._tables(selection)

        def find() -> int:
            source, where, bound = self._filtered(selection, tables)
            sql = f"SELECT count(*) AS num FROM {source.sql} {where}"  # noqa: S608 (literal pieces only)
            return int(self.ask(sql, (*source.parameters, *bound))[0]["num"])

        return int(self._remembered("count", selection, tables, find))

    def facets(self, selection: Selection) -> dict[str, Any]:
        """Count a selection's rows by every property that has few values, and its scores (or scales) in bins.

        Returns:
            By property a list of {"value", "num"}, the most frequent first, at most 100; "bins" a list of 40 counts of
            `informative` (or `scaling`) over 0..1, or None.
        """
        tables = self._tables(selection)

        def find() -> dict[str, Any]:
            source, where, bound = self._filtered(selection, tables)
            parameters = (*source.parameters, *bound)
            facets: dict[str, Any] = {}
            for name, label in (_CROP_FACETS if selection.is_cyto else _PATCH_FACETS).items():
                sql = f"SELECT {name} AS value, any_value({label}) AS label, count(*) AS num FROM {source.sql} {where} "  # noqa: S608
                sql += f"GROUP BY {name} ORDER BY num DESC, value LIMIT {_MAX_FACET_VALUES}"
                facets[name] = self.ask(sql, parameters)
            column = "scaling" if selection.is_cyto else "informative"
            facets["bins"] = None
            if selection.stage in HAS_COLUMN.get(column, (selection.stage,)):
                sql = f"SELECT {_BINS[column]} AS bin, count(*) AS num FROM {source.sql} {where} GROUP BY bin"  # noqa: S608
                found = {row["bin"]: row["num"] for row in self.ask(sql, parameters)}
                facets["bins"] = [found.get(number, 0) for number in range(NUM_BINS)]
            return facets

        answer: dict[str, Any] = self._remembered("facets", selection, tables, find)
        return answer

    def labels(self, selection: Selection) -> list[dict[str, Any]]:
        """List the labels of a selection of crops: key, label, category, number of images, and one image of each."""
        tables = self._tables(selection)

        def find() -> list[dict[str, Any]]:
            source, where, bound = self._filtered(selection, tables)
            first = "arg_min({}, hash(filename))".format
            sql = f"""SELECT partition, any_value(label) AS label, any_value(category) AS category, count(*) AS num,
                {first("filename")} AS filename, {first("part")} AS part, {first("row_group")} AS row_group
                FROM {source.sql} {where} GROUP BY partition ORDER BY label, partition"""  # noqa: S608 (literal pieces only)
            found = self.ask(sql, (*source.parameters, *bound))
            version_of = {table.partition: table.key[:16] for table in tables}
            return [{**row, "v": version_of[row["partition"]]} for row in found]

        answer: list[dict[str, Any]] = self._remembered("labels", selection, tables, find)
        return answer

    def find(self, tables: Sequence[TableContent], condition: Mapping[str, Any], limit: int = 1) -> list[dict[str, Any]]:
        """Return rows by the values of some columns; the names of the columns must be literals of our code."""
        files = self._catalogue.files(tables)
        if not files:
            return []
        where = " AND ".join(f'"{name}" = ?' for name in condition)
        sql = f"SELECT * FROM read_parquet(?) WHERE {where} LIMIT ?"  # noqa: S608 (names are ours, values bound)
        return self.ask(sql, (files, *condition.values(), limit))

    def _tables(self, selection: Selection) -> list[TableContent]:
        return self._catalogue.tables(selection.stage, selection.version, selection.partition)

    def _remembered(self, kind: str, selection: Selection, tables: Sequence[TableContent], find: Any) -> Any:
        known = selection.model_copy(update={"offset": 0, "limit": 1, "sort": "", "seed": 0})
        fates = self._fate_keys(selection, tables) if selection.fate else ()
        place = (kind, known.model_dump_json(), tuple(table.key for table in tables), fates)
        with self._lock:
            if place in self._answers:
                self._answers.move_to_end(place)
                return self._answers[place]
        found = find()
        with self._lock:
            self._answers[place] = found
            while len(self._answers) > _CACHED_ANSWERS:
                self._answers.popitem(last=False)
        return found

    def _fate_keys(self, selection: Selection, tables: Sequence[TableContent]) -> tuple[Any, ...]:
        if selection.stage not in HAS_FATE:
            return ()
        fates = [self._catalogue.fates(selection.stage, table.partition) for table in tables]
        return tuple((f.duplicates and f.duplicates.key, f.dropped and f.dropped.key, f.is_decided) for f in fates)

    def _filtered(self, selection: Selection, tables: Sequence[TableContent]) -> tuple[_Source, str, tuple[Any, ...]]:
        filters, others = (CROP_FILTERS, PATCH_FILTERS) if selection.is_cyto else (PATCH_FILTERS, CROP_FILTERS)
        given = {name for name in [*others, *filters, "fate"] if getattr(selection, name) is not None}
        sorts = CROP_SORTS if selection.is_cyto else PATCH_SORTS
        wrong = sorted(given & set(others)) + ([selection.sort] if selection.sort and selection.sort not in sorts else [])
        for name in (*sorted(given), selection.sort):
            if name in _NEEDS and selection.stage not in HAS_COLUMN[_NEEDS[name]]:
                wrong.append(name)
        if selection.fate and (selection.is_cyto or (selection.stage not in HAS_FATE and selection.fate != "kept")):
            wrong.append("fate")
        if wrong:
            raise DataError(f"{', '.join(dict.fromkeys(wrong))} does not apply to the stage {selection.stage}; leave it out.")
        source = _Source("read_parquet(?)", (self._catalogue.files(tables),))
        pieces, bound = [], []
        for name, sql in filters.items():
            if (value := getattr(selection, name)) is not None:
                pieces.append(sql)
                bound.append(value)
        if selection.text:
            exact, folded = _CROP_TEXT if selection.is_cyto else _PATCH_TEXT
            pieces.append(folded if selection.text == selection.text.lower() else exact)
            bound.append(selection.text)
        if selection.fate and selection.stage in HAS_FATE:
            source = self._with_fates(selection.stage, tables, source)
            pieces.append("fate = ?")
            bound.append(selection.fate)
        return source, f"WHERE {' AND '.join(pieces)}" if pieces else "", tuple(bound)

    def _with_fates(self, stage: str, tables: Sequence[TableContent], source: _Source) -> _Source:
        """Add the column `fate` to rows of several datasets."""
        pieces = ["SELECT NULL::VARCHAR AS dataset, NULL::VARCHAR AS name, NULL::VARCHAR AS fate WHERE false"]
        bound: list[Any] = []
        decided = []
        for table in tables:
            fates = self._catalogue.fates(stage, table.partition)
            decided += [table.partition] if fates.is_decided else []
            for side, reason in ((fates.duplicates, "'duplicate'"), (fates.dropped, "reason")):
                files = self._catalogue.files([side]) if side else []
                if files:
                    pieces.append(f"SELECT ?::VARCHAR, name, {reason} FROM read_parquet(?)")  # noqa: S608
                    bound += [table.partition, files]
        sql = f"""(SELECT r.*, CASE WHEN f.fate IS NOT NULL THEN f.fate WHEN list_contains(?::VARCHAR[], r.dataset) THEN 'kept'
            ELSE 'undecided' END AS fate FROM {source.sql} r LEFT JOIN ({" UNION ALL ".join(pieces)}) f
            ON r.name = f.name AND r.dataset = f.dataset)"""  # noqa: S608 (literal pieces only)
        return _Source(sql, (decided, *source.parameters, *bound))

    def _add_fates(self, stage: str, rows: list[dict[str, Any]]) -> None:
        fates = {dataset: self._catalogue.fates(stage, dataset) for dataset in {row["dataset"] for row in rows}}
        names = [row["name"] for row in rows]
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for columns, kind in (("exemplar, distance, 'duplicate' AS fate", "duplicates"), ("reason AS fate", "dropped")):
            of_file: dict[str, str] = {}
            for dataset, fate in fates.items():
                side = getattr(fate, kind)
                of_file |= dict.fromkeys(self._catalogue.files([side]) if side else [], dataset)
            if of_file:
                sql = f"SELECT filename, name, {columns} FROM read_parquet(?, filename = true) WHERE list_contains(?, name)"  # noqa: S608
                for row in self.ask(sql, (list(of_file), names)):
                    found[of_file[row.pop("filename")], row.pop("name")] = row
        for row in rows:
            default = "kept" if fates[row["dataset"]].is_decided else "undecided"
            row |= found.get((row["dataset"], row["name"]), {"fate": default})
