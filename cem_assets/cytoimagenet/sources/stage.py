"""Stage `cytoimagenet/source_metadata`: a source's own tables and image folder become standard rows.

The source's recipe (`cem_assets.cytoimagenet.sources.recipe`) says how. Tables and paths of images come from the inbox, and no
image is decoded here.
"""

import json
from typing import Any

import pandas as pd

from cem_assets.catalog.microscopy import terms
from cem_assets.cytoimagenet.sources.inbox import SOURCE_TOML, InboxSource, read_inbox_source, read_source_tables
from cem_assets.cytoimagenet.sources.schema import check_metadata
from cem_assets.cytoimagenet.sources.standardize import Terms, standardize
from cem_assets.cytoimagenet.tables import METADATA_SCHEMA, SOURCE_DROPPED_SCHEMA, frame_bytes
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, StageResult, begin, no_progress
from cem_assets.formats.microscopy_images import is_image
from cem_assets.formats.tables.metadata import is_table
from cem_assets.inbox.datasets import InboxFile, Rejection
from cem_assets.inbox.quarantine import clear_report, write_report
from cem_assets.store.assets import CODE_VERSIONS, SOURCE_METADATA
from cem_assets.store.manifests import Inputs
from cem_assets.store.store import Store

REPORT = "report.json"


def standardize_source(store: Store, source: str, run_id: str = "", progress: Progress = no_progress) -> StageResult:
    """Make the standard metadata of a source.

    Args:
        source: Partition key, and name of the source's folder in the inbox.

    Returns:
        The committed partition of `cytoimagenet/source_metadata`: a table of rows, `_dropped` with a reason for every row and
        file that was left out, and the report.

    Raises:
        FileNotFoundError: The inbox has no such source.
        DataError: Its description breaks rules, a table cannot be read, or no row is left. `quarantine/` has a report that
            says what to repair.
    """
    common_terms = terms()  # not below: a mistake in our own catalogue is not the source's fault
    try:
        inbox = read_inbox_source(store, source)
        progress(1, 3)
        inputs = Inputs(
            SOURCE_METADATA, source, CODE_VERSIONS[SOURCE_METADATA], {"terms": common_terms}, {f"inbox/{source}": inbox.digest}
        )
        stage = begin(store, inputs, run_id)
        if stage.up_to_date:
            _report_names(store, source, inbox)  # replaces the report of a fault that was repaired meanwhile
            return stage.up_to_date
        rows, dropped, report = _standardized(store, source, inbox, common_terms)
    except (FileNotFoundError, DataError) as error:  # not ValueError: a bug of ours must not be reported as bad data
        write_report(store, source, [Rejection(SOURCE_TOML, str(error))], is_refused=True, asset=SOURCE_METADATA)
        raise
    progress(2, 3)
    stage.commit.write("part-00000.parquet", frame_bytes(rows, METADATA_SCHEMA))
    stage.commit.write("_dropped/part-00000.parquet", frame_bytes(dropped, SOURCE_DROPPED_SCHEMA))
    stage.commit.write(REPORT, json.dumps(report, indent=1, ensure_ascii=False).encode())
    _report_names(store, source, inbox)
    counts = {"rows": len(rows), "rows_with_images": report["num_images"], "dropped": len(dropped)}
    facts = inbox.description.facts.model_dump(mode="json")
    progress(3, 3)
    return stage.finish(counts, {"facts": facts, "report": report})


def _report_names(store: Store, source: str, inbox: InboxSource) -> None:
    """Report files whose names are not allowed, or remove the report if there are none."""
    if inbox.rejections:
        write_report(store, source, inbox.rejections, is_refused=False, asset=SOURCE_METADATA)
    else:
        clear_report(store, source)


def _standardized(
    store: Store, source: str, inbox: InboxSource, common_terms: Terms
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    description = inbox.description
    tables, notes, refused = read_source_tables(store, inbox)
    files = {item.path: item for item in inbox.files}
    images = [path for path in files if is_image(path)]
    found = standardize(description.recipe, description.facts, tables, images, common_terms)
    if not len(found.rows):
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in list(found.report["dropped"].items())[:10])
        num_read = sum(found.report["num_rows_read"].values())
        raise DataError(
            f"source {source!r} has no row left of {num_read:,} in its tables and {len(images):,} images: "
            f"{reasons or 'its first table is empty'}. Correct the recipe, or the files, in the inbox."
        )
    rows = found.rows.assign(source=source, licence=description.facts.licence)
    rows["sha256"] = [tuple(files[file_of(name)].sha256 for name in names) for names in rows["files"]]
    check_metadata(rows, source)
    others = [Rejection(item.path, "neither a table nor an image that the recipe uses") for item in _ignored(inbox)]
    more = pd.DataFrame(
        [(r.what, r.reason) for r in (*inbox.rejections, *refused, *others)], columns=["what", "reason"], dtype="str"
    )
    dropped = pd.concat([found.dropped, more], ignore_index=True)
    report = {**found.report, "tables": notes, "num_files": len(files), "num_image_files": len(images)}
    return rows, dropped, report


def file_of(name: str) -> str:
    """Return the path in an entry of `files`, without the page: "a/b.tif" for "a/b.tif#2"."""
    path, mark, page = name.rpartition("#")
    return path if mark and page.isdecimal() else name


def page_of(name: str) -> int | None:
    """Return the page in an entry of `files`, counted from 0: 1 for "a/b.tif#2"; None for a whole file."""
    _, mark, page = name.rpartition("#")
    return int(page) - 1 if mark and page.isdecimal() else None


def _ignored(inbox: InboxSource) -> list[InboxFile]:
    used = [SOURCE_TOML]
    return [item for item in inbox.files if item.path not in used and not is_table(item.path) and not is_image(item.path)]
