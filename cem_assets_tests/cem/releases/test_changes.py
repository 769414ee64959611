"""The differences between two releases, and their reasons."""

from cem_assets.cem.filter.params import FilterParams
from cem_assets.cem.filter.stage import keep_informative
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import choose_exemplars
from cem_assets.cem.releases.changes import compare_releases
from cem_assets.cem.releases.stage import make_release
from cem_assets.cli.main import main
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import run_chain, run_stage
from cem_assets_tests.datasets import cells, nrrd_bytes, volume_dataset


def test_datasets_and_patches_that_came_and_went_are_named_with_the_reason(curated_store: Store):
    store = curated_store
    make_release(store, datasets=["cells", "pictures"])
    assert compare_releases(store, "v1", "v1") == []
    volume_dataset(store, "new", seed=5)
    run_chain(store, "new", until="filtered", threshold=0.0)
    choose_exemplars(store, "cells", DedupParams(max_distance=30))
    run_stage(store, "cells", "scores")
    keep_informative(store, "cells", FilterParams(threshold=0.25))
    make_release(store, datasets=["cells", "new"])
    changes = {change.dataset: change for change in compare_releases(store, "v1", "v2")}
    assert {name: change.kind for name, change in changes.items()} == {
        "cells": "changed", "new": "added", "pictures": "removed",
    }  # fmt: skip
    assert changes["new"].added and not changes["new"].removed
    assert changes["pictures"].removed and not changes["pictures"].added
    assert changes["cells"].reasons == (
        "deduplicated_patches: max_distance 12 became 30",
        "filtered_patches: threshold 0.0 became 0.25",
    )
    assert len(changes["cells"].removed) > 0
    backwards = {change.dataset: change for change in compare_releases(store, "v2", "v1")}
    assert backwards["cells"].added == changes["cells"].removed and backwards["pictures"].kind == "added"


def test_changed_files_are_told(curated_local: Store):
    make_release(curated_local, datasets=["twin"])
    curated_local.put("inbox/twin/v.nrrd", nrrd_bytes(cells((70, 130, 250))))
    run_chain(curated_local, "twin", until="filtered", threshold=0.0)
    make_release(curated_local, datasets=["twin"])
    (change,) = compare_releases(curated_local, "v1", "v2")
    assert change.reasons == ("volumes: the files in the inbox changed",)


def test_the_command_line_lists_and_compares(curated_local: Store, capsys):
    make_release(curated_local, datasets=["cells"])
    make_release(curated_local, datasets=["cells", "pictures"])
    assert main(["--root", curated_local.url, "releases"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("v1 ") and "1 datasets" in first and second.startswith("v2 ") and curated_local.url in second
    assert main(["--root", curated_local.url, "releases", "v1"]) == 0
    shown = capsys.readouterr().out
    assert "v1 -> v2: 1 dataset(s) differ" in shown and "added    pictures: +" in shown and "      + pictures/" not in shown
    assert "-LOC-2d-" in shown
    assert main(["--root", curated_local.url, "releases", "v1", "v9"]) == 1
    assert "has nothing committed" in capsys.readouterr().err
