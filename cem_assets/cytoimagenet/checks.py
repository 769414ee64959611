"""What must be true of CytoImageNet's assets before anything is made from them."""

import json

import numpy as np
import pyarrow.compute as pc

from cem_assets.cytoimagenet.columns import split_values
from cem_assets.cytoimagenet.crops.stage import DROPPED
from cem_assets.cytoimagenet.held_out.guard import guarded_set, load_rules
from cem_assets.cytoimagenet.labels.stage import CANDIDATES, TABLE, label_entries, label_rows
from cem_assets.cytoimagenet.releases.stage import LISTING, METADATA, list_cyto_releases
from cem_assets.cytoimagenet.sources.schema import check_metadata
from cem_assets.cytoimagenet.tables import read_frame
from cem_assets.errors import DataError
from cem_assets.execution.checks import Outcome
from cem_assets.store.assets import CROPS, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES
from cem_assets.store.manifests import current_manifest, damaged_objects, require_manifest
from cem_assets.store.parquet import parquet_file
from cem_assets.store.store import Store


def metadata_obeys_schema(store: Store, source: str) -> Outcome:
    """Every row of the metadata obeys the schema of the standard columns."""
    manifest = require_manifest(store, SOURCE_METADATA, source)
    frame = read_frame(store, manifest, TABLE)
    try:
        check_metadata(frame, source)
    except DataError as error:
        return Outcome(False, str(error), {"rows": len(frame)})
    return Outcome(True, f"{len(frame):,} rows obey the schema", {"rows": len(frame)})


def labels_obey_rules(store: Store, _: str = "") -> Outcome:
    """Every row has its label's value, no image is chosen twice, sizes are within bounds, and no source is a test set."""
    manifest = require_manifest(store, LABEL_TABLE)
    low, high = manifest.inputs.parameters["min_images"], manifest.inputs.parameters["max_images"]
    is_substring = manifest.inputs.parameters["match"] == "substring"
    candidates = read_frame(store, manifest, CANDIDATES)
    values = dict(zip(candidates["label"], candidates["value"], strict=True))
    problems: list[str] = []
    seen: set[str] = set()
    rules = load_rules()
    for entry in label_entries(store, manifest).values():
        frame = label_rows(store, manifest, entry)
        value = values[entry.label]
        strays = sum(value not in (cell if is_substring else split_values(cell)) for cell in frame[entry.category])
        if strays:
            problems.append(f"{entry.label}: {strays} row(s) do not have its value")
        if not low <= len(frame) <= high:
            problems.append(f"{entry.label}: {len(frame):,} rows; expected {low:,} to {high:,}")
        repeated = len(frame) - frame["idx"].nunique() + len(seen & set(frame["idx"]))
        if repeated:
            problems.append(f"{entry.label}: {repeated} image(s) are chosen twice")
        seen |= set(frame["idx"])
        hits = {source for source in frame["source"].unique() if guarded_set([source], rules)}
        problems += [f"{entry.label}: images of the test set {source}" for source in sorted(hits)]
    summary = "; ".join(problems[:10]) or f"{manifest.counts['labels']:,} labels, {len(seen):,} images"
    return Outcome(not problems, summary, {"labels": manifest.counts["labels"], "problems": len(problems)})


def crops_add_up(store: Store, key: str) -> Outcome:
    """Every crop is in the shards or was dropped with a reason, its window has its size, and no two have the same pixels."""
    manifest = require_manifest(store, CROPS, key)
    columns = ["idx", "crop", "scaling", "x_min", "x_max", "y_min", "y_max", "height", "width", "pixel_sha256", "filename"]
    problems = []
    num, digests, names = 0, set(), set()
    for item in manifest.find(".parquet"):
        with store.open(f"{manifest.folder}/{item.name}") as handle:
            table = parquet_file(handle).read(columns=columns)
        num += len(table)
        digests |= set(table["pixel_sha256"].to_pylist())
        names |= set(table["filename"].to_pylist())
        fits = pc.and_(
            pc.equal(pc.subtract(table["y_max"], table["y_min"]), table["height"]),
            pc.equal(pc.subtract(table["x_max"], table["x_min"]), table["width"]),
        )
        misfits = len(table) - int(np.count_nonzero(fits.to_numpy()))
        if misfits:
            problems.append(f"{misfits} window(s) differ in size from their images")
    dropped = read_frame(store, manifest, DROPPED)
    cut = num + int((dropped["crop"] >= 0).sum())
    if num != manifest.counts["images"] or cut != manifest.counts["crops_cut"]:
        problems.append(
            f"there are {num} images and {cut} crops; "
            f"the manifest says {manifest.counts['images']} and {manifest.counts['crops_cut']}"
        )
    if len(digests) != num or len(names) != num:
        problems.append(
            f"{num - len(digests)} image(s) have the pixels of another one, and {num - len(names)} the name of another one"
        )
    return Outcome(not problems, "; ".join(problems) or f"{num:,} images, {len(dropped):,} dropped", {"images": num})


def no_test_images(store: Store, key: str) -> Outcome:
    """The crops were compared with the current test images, and none of them is a test image."""
    manifest = require_manifest(store, CROPS, key)
    tests = current_manifest(store, TEST_IMAGES)
    seen = manifest.inputs.upstream.get(TEST_IMAGES, "")
    expected = tests.digest if tests else ""
    rules = load_rules()
    hits = [source for source in manifest.details["sources"] if guarded_set([source], rules)]
    found = manifest.details["dropped_by_reason"].get("test_image", 0)
    if seen != expected:
        return Outcome(
            False, f"test images changed since these crops were made; materialize {CROPS} again.", {"dropped": found}
        )
    if hits:
        return Outcome(False, f"there are images of test sets: {', '.join(sorted(hits))}", {"dropped": found})
    return Outcome(True, f"{found} test image(s) were left out", {"dropped": found})


def cyto_release_is_complete(store: Store, _: str = "") -> Outcome:
    """Every shard of the newest release is in the store, and the release's table has a row for each image in them."""
    releases = list_cyto_releases(store)
    if not releases:
        return Outcome(False, "there is no release", {})
    newest = releases[-1]
    listing = json.loads(store.read(f"{newest.folder}/{LISTING}"))
    missing = [
        f"{label['folder']}/{item['name']}"
        for label in listing["labels"]
        for item in label["objects"]
        if store.size(f"{label['folder']}/{item['name']}") != item["num_bytes"]
    ]
    damaged = damaged_objects(store, newest)
    rows = len(read_frame(store, newest, METADATA, ["idx"])) if METADATA not in damaged else -1
    problems = [f"{name} is missing or changed" for name in missing] + [f"{name}: {what}" for name, what in damaged.items()]
    if rows != sum(label["num_images"] for label in listing["labels"]):
        problems.append(
            f"its table has {rows:,} rows, and its labels {sum(label['num_images'] for label in listing['labels']):,} images"
        )
    summary = "; ".join(problems[:10]) or f"{newest.inputs.partition}: {rows:,} images"
    return Outcome(not problems, summary, {"problems": len(problems)})
