"""Checks pass on what the stages write, and fail on every kind of damage that they are meant to find."""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cem_assets.cem import checks as cem_checks
from cem_assets.cem.patches.tables import DEDUPLICATED_SCHEMA, RAW_SCHEMA, SCORES_SCHEMA
from cem_assets.execution import checks as common_checks
from cem_assets.store.assets import DEDUPLICATED, FILTERED, RAW, SCORES, VOLUMES
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import require_manifest
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import run_chain
from cem_assets_tests.datasets import nrrd_bytes, put_in_inbox

CHECKS = {
    RAW: (cem_checks.raw_counts_add_up, cem_checks.patches_lie_inside, cem_checks.blank_fraction),
    DEDUPLICATED: (cem_checks.exemplars_are_distinct, cem_checks.duplicates_have_exemplars),
    SCORES: (cem_checks.scores_are_probabilities,),
    FILTERED: (cem_checks.filtered_counts_add_up,),
}


@pytest.mark.parametrize("dataset", ["cells", "pictures"])
def test_everything_holds_for_what_the_stages_wrote(curated: Store, dataset):
    for asset, checks in CHECKS.items():
        manifest = require_manifest(curated, asset, dataset)
        for check in checks:
            outcome = check(curated, manifest)
            assert outcome.passed, (check.__name__, outcome)
    for asset in (VOLUMES, RAW, DEDUPLICATED, SCORES, FILTERED):
        assert common_checks.objects_match_manifest(curated, asset, dataset).passed


def test_objects_of_large_partitions_are_hashed_in_part(curated_local: Store, monkeypatch):
    monkeypatch.setattr(common_checks, "HASHED_BYTES", 100)
    outcome = common_checks.objects_match_manifest(curated_local, VOLUMES, "cells")
    assert outcome.passed and 0 < outcome.facts["hashed"] < outcome.facts["objects"]


def test_lost_and_changed_objects_are_named(curated_local: Store):
    manifest = require_manifest(curated_local, RAW, "cells")
    key = f"{manifest.folder}/part-00000.parquet"
    curated_local.put(key, curated_local.read(key)[:-1] + b"x")
    outcome = common_checks.objects_match_manifest(curated_local, RAW, "cells")
    assert (
        not outcome.passed
        and "part-00000.parquet: sha256" in outcome.description
        and "Materialize cem/raw_patches again" in outcome.description
    )
    curated_local.delete([key])
    assert "missing" in common_checks.objects_match_manifest(curated_local, RAW, "cells").description


def rewrite(store: Store, asset: str, schema: pa.Schema, change) -> None:
    """Commit a changed table in place of the current one, as a faulty stage would."""
    old = require_manifest(store, asset, "cells")
    table = pq.read_table(io.BytesIO(store.read(f"{old.folder}/part-00000.parquet")))
    changed = change(table)
    others = {item.name: store.read(f"{old.folder}/{item.name}") for item in old.objects if item.name != "part-00000.parquet"}
    store.delete([item.key for item in store.walk(f"{asset}/cells")])
    commit = Commit(store, old.inputs)
    for name, data in others.items():
        commit.write(name, data)
    commit.write("part-00000.parquet", parquet_bytes([changed], schema))
    commit.finish(old.counts, old.details)


def replaced(table: pa.Table, column: str, row: int, value) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("index", 5000, "1 patches lie outside of their volume, 1 are misnamed"),
        ("x1", 300, "1 patches lie outside"),
        ("y0", -1, "1 patches lie outside"),
        (
            "name",
            "v-LOC-0_00_0-64_0-64",
            "0 patches lie outside of their volume, 1 are misnamed, such as 'v-LOC-0_00_0-64_0-64'",
        ),
    ],
)
def test_patches_outside_or_misnamed(curated_local: Store, column, value, message):
    rewrite(curated_local, RAW, RAW_SCHEMA, lambda table: replaced(table, column, 3, value))
    outcome = cem_checks.patches_lie_inside(curated_local, require_manifest(curated_local, RAW, "cells"))
    assert not outcome.passed and message in outcome.description


def test_lost_raw_patches(curated_local: Store):
    rewrite(curated_local, RAW, RAW_SCHEMA, lambda table: table.slice(1))
    outcome = cem_checks.raw_counts_add_up(curated_local, require_manifest(curated_local, RAW, "cells"))
    assert not outcome.passed and "440 patches in 439 rows and 0 rejected; the sizes say 440" in outcome.description


def test_two_exemplars_within_the_distance(curated_local: Store):
    def near(table: pa.Table) -> pa.Table:
        return replaced(table, "dhash", 7, int(table["dhash"][2].as_py()) ^ 0b111)

    rewrite(curated_local, DEDUPLICATED, DEDUPLICATED_SCHEMA, near)
    outcome = cem_checks.exemplars_are_distinct(curated_local, require_manifest(curated_local, DEDUPLICATED, "cells"))
    assert not outcome.passed and "exemplars 2 and 7 are 3 bits apart; expected more than 12" in outcome.description


def test_many_exemplars_are_compared_in_part(curated: Store, monkeypatch):
    monkeypatch.setattr(cem_checks, "MAX_COMPARED", 5)
    outcome = cem_checks.exemplars_are_distinct(curated, require_manifest(curated, DEDUPLICATED, "cells"))
    assert outcome.passed and outcome.facts["compared"] == 5


def test_a_lost_exemplar_leaves_orphans(curated_local: Store):
    rewrite(
        curated_local,
        DEDUPLICATED,
        DEDUPLICATED_SCHEMA,
        lambda t: t.filter(pc.less(t["num_duplicates"], pc.max(t["num_duplicates"]))),
    )
    assert not cem_checks.duplicates_have_exemplars(
        curated_local, require_manifest(curated_local, DEDUPLICATED, "cells")
    ).passed


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_scores_that_are_no_probabilities(curated_local: Store, value):
    rewrite(curated_local, SCORES, SCORES_SCHEMA, lambda table: replaced(table, "informative", 0, value))
    outcome = cem_checks.scores_are_probabilities(curated_local, require_manifest(curated_local, SCORES, "cells"))
    assert not outcome.passed and "1 of them no probabilities" in outcome.description


def test_mostly_padding_is_worth_a_look(local_store: Store):
    import numpy as np

    voxels = np.zeros((70, 224, 300), np.uint8)
    voxels[:, :, :60] = np.random.default_rng(0).integers(0, 255, (70, 224, 60))
    put_in_inbox(local_store, "d", {"v.nrrd": nrrd_bytes(voxels)})
    run_chain(local_store, "d", until="raw")
    outcome = cem_checks.blank_fraction(local_store, require_manifest(local_store, RAW, "d"))
    assert not outcome.passed and "80% of volume 'v' has one gray value" in outcome.description
