"""What must be true of a committed partition: functions that take its manifest and say in words what they found.

Dagster runs them as asset checks (`cem_assets.cem.asset_checks`). Nothing here imports Dagster. The first line of each
docstring is the description that people read in the UI.
"""

from typing import Any

import numpy as np

from cem_assets.cem.patch_grid import PATCH_SIDE_PX
from cem_assets.cem.patches.pixels import pixels_behind
from cem_assets.cem.patches.tables import DUPLICATES_SCHEMA, places_of
from cem_assets.cem.volumes.bricks import count_patches, names_of
from cem_assets.execution.checks import Outcome
from cem_assets.imaging.hamming import closest_pair_within
from cem_assets.store.manifests import Manifest
from cem_assets.store.parquet import read_parts, read_side_table
from cem_assets.store.store import Store

MAX_COMPARED = 300_000
"""Up to this number of exemplars, each is compared with each; of more exemplars, a random sample of this size is."""
BLANK_SHARE = 0.5
"""If one gray value has a larger share of the voxels than this, or patches without any gradient have a larger share of the
patches, a person should look at the dataset."""


def raw_counts_add_up(store: Store, manifest: Manifest) -> Outcome:
    """Compare the number of patches with what the sizes of the volumes say."""
    pixels = pixels_behind(store, manifest)
    spacing = int(manifest.inputs.parameters["spacing"])
    if pixels.images is not None:
        expected = sum(count_patches((1, *size), (0,)) for size in pixels.images.sizes().values())
    else:
        expected = sum(count_patches(volume.shape, volume.planes, spacing) for volume in pixels.volumes)
    found, rejected = manifest.counts["patches"], manifest.counts["rejected_patches"]
    rows = sum(len(table) for table in read_parts(store, manifest, ["axis"]))
    facts = {"expected": expected, "patches": found, "rejected": rejected, "rows": rows}
    if found + rejected == expected and rows == found:
        return Outcome(True, f"{found:,} patches and {rejected:,} rejected make {expected:,}, as the sizes say", facts)
    return Outcome(False, f"{found:,} patches in {rows:,} rows and {rejected:,} rejected; the sizes say {expected:,}.", facts)


def patches_lie_inside(store: Store, manifest: Manifest) -> Outcome:
    """Check every patch's place against its volume, and its name against its place."""
    shapes = pixels_behind(store, manifest).shapes()
    outside = misnamed = total = 0
    example = ""
    for table in read_parts(store, manifest, None, 1 << 16):
        place = places_of(table)
        names, owners = np.array(table["name"].to_pylist(), dtype=object), np.array(table["volume"].to_pylist(), dtype=object)
        for volume in dict.fromkeys(owners.tolist()):
            on = owners == volume
            shape = shapes[volume]
            bad = _outside(place[on], shape)
            wrong = names[on] != np.array(names_of(volume, shape, place[on]), dtype=object)
            outside += int(bad.sum())
            misnamed += int(wrong.sum())
            if (bad | wrong).any() and not example:
                example = str(names[on][bad | wrong][0])
        total += len(table)
    facts = {"patches": total, "outside": outside, "misnamed": misnamed}
    if outside or misnamed:
        return Outcome(
            False, f"{outside} patches lie outside of their volume, {misnamed} are misnamed, such as {example!r}.", facts
        )
    return Outcome(True, f"all {total:,} patches lie inside of their volumes and are named after their places", facts)


def _outside(place: np.ndarray[Any, np.dtype[np.int32]], shape: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    axis, index, y0, y1, x0, x1 = place.T
    planar = np.maximum(axis, 0)
    sides = np.array([[shape[1], shape[2]], [shape[0], shape[2]], [shape[0], shape[1]]])[planar]
    depth = np.where(axis < 0, 1, np.array(shape)[planar])
    inside = (index >= 0) & (index < depth) & (y0 >= 0) & (y0 < y1) & (x0 >= 0) & (x0 < x1)
    return np.asarray(
        ~(inside & (y1 <= sides[:, 0]) & (x1 <= sides[:, 1]) & (y1 - y0 <= PATCH_SIDE_PX) & (x1 - x0 <= PATCH_SIDE_PX))
    )


def blank_fraction(store: Store, manifest: Manifest) -> Outcome:
    """Warn where most voxels have one value, or most patches no gradient at all: padding, or a failed copy."""
    pixels = pixels_behind(store, manifest)
    shares = {v.name: max(v.record.histogram) / max(sum(v.record.histogram), 1) for v in pixels.volumes}
    flat = total = 0
    for table in read_parts(store, manifest, ["dhash"]):
        hashes = table["dhash"].to_numpy()
        flat += int((hashes == 0).sum())
        total += len(hashes)
    share = flat / max(total, 1)
    worst = max(shares, key=lambda name: shares[name], default="")
    facts = {"patches_without_gradient": share, "most_common_value_share": shares.get(worst, 0.0)}
    if share > BLANK_SHARE or shares.get(worst, 0.0) > BLANK_SHARE:
        where = f"; {shares[worst]:.0%} of volume {worst!r} has one gray value" if worst else ""
        return Outcome(
            False, f"{share:.0%} of the patches have no gradient{where}. Look at the gallery: padding, or a failed copy?", facts
        )
    return Outcome(True, f"{share:.1%} of the patches have no gradient", facts)


def exemplars_are_distinct(store: Store, manifest: Manifest) -> Outcome:
    """Look for two exemplars within the distance; there must be none."""
    distance = int(manifest.inputs.parameters["max_distance"])
    hashes = np.concatenate([table["dhash"].to_numpy() for table in read_parts(store, manifest, ["dhash"])])
    compared = hashes
    if len(hashes) > MAX_COMPARED:
        chosen = np.random.default_rng(int(manifest.digest[:8], 16)).choice(len(hashes), MAX_COMPARED, replace=False)
        compared = hashes[np.sort(chosen)]
    pair = closest_pair_within(compared, distance)
    facts = {"exemplars": len(hashes), "compared": len(compared), "distance": distance}
    if pair is not None:
        return Outcome(
            False, f"exemplars {pair[0]} and {pair[1]} are {pair[2]} bits apart; expected more than {distance}.", facts
        )
    return Outcome(True, f"no two of {len(compared):,} exemplars are within {distance} bits", facts)


def duplicates_have_exemplars(store: Store, manifest: Manifest) -> Outcome:
    """Check that exemplars and duplicates make up the raw table, and that each duplicate's exemplar is one."""
    raw = int(manifest.details["lineage"]["raw_patches"])
    distance = int(manifest.inputs.parameters["max_distance"])
    exemplars: set[str] = set()
    claimed = 0
    for table in read_parts(store, manifest, ["name", "num_duplicates"]):
        exemplars.update(table["name"].to_pylist())
        claimed += int(table["num_duplicates"].to_numpy().sum())
    pairs = read_side_table(store, manifest, "_duplicates", DUPLICATES_SCHEMA)
    orphans = sum(name not in exemplars for name in pairs["exemplar"].to_pylist())
    far = int((pairs["distance"].to_numpy() > distance).sum()) if len(pairs) else 0
    facts = {"raw": raw, "exemplars": len(exemplars), "duplicates": len(pairs), "orphans": orphans, "too_far": far}
    if len(exemplars) + len(pairs) == raw and claimed == len(pairs) and not orphans and not far:
        return Outcome(True, f"{len(exemplars):,} exemplars and {len(pairs):,} duplicates make the {raw:,} raw patches", facts)
    return Outcome(
        False,
        f"{len(exemplars):,} exemplars and {len(pairs):,} duplicates ({claimed:,} counted) for {raw:,} raw patches; {orphans} "
        f"without exemplar, {far} too far from it.",
        facts,
    )


def scores_are_probabilities(store: Store, manifest: Manifest) -> Outcome:
    """Check that every exemplar has a score, a finite number from 0 to 1."""
    expected = int(manifest.details["lineage"]["deduplicated_patches"])
    total = wrong = 0
    for table in read_parts(store, manifest, ["informative", "logit"]):
        scores, logits = table["informative"].to_numpy(), table["logit"].to_numpy()
        wrong += int((~(np.isfinite(logits) & (scores >= 0) & (scores <= 1))).sum())
        total += len(table)
    facts = {"exemplars": expected, "scores": total, "not_probabilities": wrong}
    if total == expected and not wrong:
        return Outcome(True, f"all {total:,} exemplars have a probability", facts)
    return Outcome(False, f"{total:,} scores for {expected:,} exemplars, {wrong} of them no probabilities.", facts)


def filtered_counts_add_up(store: Store, manifest: Manifest) -> Outcome:
    """Check that kept and dropped patches make up the scored ones."""
    scored = int(manifest.details["lineage"]["deduplicated_patches"])
    kept = sum(len(table) for table in read_parts(store, manifest, ["name"]))
    dropped = int(manifest.counts["dropped"])
    facts = {"scored": scored, "kept": kept, "dropped": dropped}
    if kept == manifest.counts["patches"] and kept + dropped == scored:
        return Outcome(True, f"{kept:,} kept and {dropped:,} dropped make the {scored:,} scored patches", facts)
    return Outcome(False, f"{kept:,} kept and {dropped:,} dropped for {scored:,} scored patches.", facts)


def release_is_complete(store: Store, release: Manifest) -> Outcome:
    """Check that every object a release names is in the store, with its size."""
    lacking = []
    count = 0
    for dataset in release.details["contents"]:
        for item in dataset["objects"]:
            count += 1
            if store.size(f"{dataset['folder']}/{item['name']}") != item["num_bytes"]:
                lacking.append(f"{dataset['dataset']}/{item['name']}")
    facts = {"objects": count, "lacking": len(lacking)}
    if lacking:
        return Outcome(
            False, f"{len(lacking)} of {count} objects are missing or changed, such as {lacking[0]}. Restore them.", facts
        )
    return Outcome(True, f"all {count} objects of {release.inputs.partition} are in the store", facts)
