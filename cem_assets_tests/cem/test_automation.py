"""Sensors and schedules: tests tick them by hand, and run what they request in this process."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pytest

from cem_assets import catalog, readers
from cem_assets.catalog import microscopy
from cem_assets.cem.automation import inbox_sensor, reconciliation_sensor, release_schedule
from cem_assets.cem.reconciliation import CHAIN
from cem_assets.cem.releases import stage as cem_releases
from cem_assets.cytoimagenet.automation import cytoimagenet_sensor
from cem_assets.definitions import build_definitions
from cem_assets.inbox.datasets import DESCRIPTION, path_problem
from cem_assets.operations.automation import catalogue_schedule
from cem_assets.operations.catalogue_intake import fetch_row
from cem_assets.platform.attempts import MAX_REQUESTS
from cem_assets.platform.partitions import em_datasets
from cem_assets.platform.resources import StoreResource
from cem_assets.platform.steps import FAULT_TAG
from cem_assets.store.assets import DEDUPLICATED, FILTERED, RAW, SCORES, VOLUMES
from cem_assets.store.local import file_sha256
from cem_assets.store.manifests import current_manifest, damaged_objects
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import import_classifier
from cem_assets_tests.conftest import copy_store
from cem_assets_tests.datasets import cells, nrrd_bytes, put_in_inbox, toml, volume_dataset
from cem_assets_tests.platform.ticks import Platform


@pytest.fixture
def platform(store: Store):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(store, instance)


@pytest.fixture
def local_platform(local_store: Store):
    with dg.instance_for_test() as instance:
        yield Platform(local_store, instance)


def copied(curated: Store, store: Store) -> Store:
    """Copy `curated` and the settings that it was made with. The uploads are older than everything made from them."""
    copy_store(curated, store)
    for item in store.walk("inbox"):
        os.utime(store.url_of(item.key), (0, 0))
    store.put(
        "settings/cem.toml", b"[parameters.filtered_patches]\nthreshold = 0.0\n[parameters.patch_scores]\nbatch_size = 16\n"
    )
    return store


ONCE = dict.fromkeys(CHAIN, 1)


def test_what_arrives_is_taken_in_once(platform, weights):
    store = platform.store
    import_classifier(store, weights)
    volume_dataset(store, "one")
    volume_dataset(store, "two", seed=1)
    store.put("inbox/unfinished/v.nrrd", b"still uploading")
    assert platform.tick_and_run(inbox_sensor) == {"one": list(CHAIN), "two": list(CHAIN)}
    assert platform.instance.get_dynamic_partitions(em_datasets.name) == ["one", "two"]
    assert platform.num_commits("one") == platform.num_commits("two") == ONCE
    assert len(readers.read_patches("one", "filtered", store.url)) > 0
    for sensor in (inbox_sensor, reconciliation_sensor):
        assert platform.tick(sensor).run_requests == []
    time.sleep(1.1)  # the S3 server records times in whole seconds
    volume_dataset(store, "one")
    assert list(platform.tick_and_run(inbox_sensor)) == ["one"], "uploaded again, so looked at again"
    assert platform.num_commits("one") == ONCE, "but the files are the same"
    assert platform.tick(reconciliation_sensor).run_requests == []
    time.sleep(1.1)
    put_in_inbox(store, "one", {"v.nrrd": nrrd_bytes(cells((70, 130, 250)))}, toml("one"))
    platform.tick_and_run(inbox_sensor)
    assert platform.num_commits("one") == dict.fromkeys(CHAIN, 2), "a changed dataset becomes a new version"
    assert platform.num_commits("two") == ONCE


def test_a_refused_dataset_is_reported_and_taken_up_when_it_is_repaired(platform):
    store = platform.store
    put_in_inbox(store, "bad", {"v.nrrd": nrrd_bytes(cells((70, 130, 240)))}, toml("bad", voxel_sise="[1, 1, 1]"))
    result = platform.tick(inbox_sensor)
    assert result.run_requests == [] and platform.instance.get_dynamic_partitions(em_datasets.name) == []
    (event,) = result.asset_events
    assert "unknown key" in event.metadata["problem"].value
    assert event.metadata["quarantine report"].value == store.url_of("quarantine/bad/report.md")
    assert b"voxel_sise" in store.read("quarantine/bad/report.md") and store.size("inbox/bad/v.nrrd")
    for sensor in (inbox_sensor, reconciliation_sensor):
        assert platform.tick(sensor).run_requests == []
    time.sleep(1.1)
    store.put("inbox/bad/dataset.toml", toml("bad").encode())
    assert platform.tick_and_run(inbox_sensor) == {"bad": [VOLUMES, RAW, DEDUPLICATED]}, "no classifier yet"
    assert store.size("quarantine/bad/report.md") is None


def test_bad_files_are_not_tried_again_until_something_changes(local_platform):
    store = local_platform.store
    put_in_inbox(store, "bad", {"v.nrrd": b"NRRD0004\ngarbage"})
    (request,) = local_platform.tick(inbox_sensor).run_requests
    result = local_platform.run(request)
    assert not result.success and local_platform.instance.get_run_by_id(result.run_id).tags[FAULT_TAG] == "data"
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert failure.step_failure_data.user_failure_data.metadata["quarantine report"].value.endswith("quarantine/bad/report.md")
    tick = local_platform.tick(reconciliation_sensor)
    assert tick.run_requests == [] and "repair it in the inbox" in tick.skip_reason.skip_message
    put_in_inbox(store, "bad", {"v.nrrd": nrrd_bytes(cells((70, 130, 240)))})
    local_platform.tick_and_run(inbox_sensor)
    assert local_platform.num_commits("bad")[DEDUPLICATED] == 1


def put_many(store: Store, num: int) -> None:
    def put(number: int) -> None:
        name = f"many-{number:04d}"
        store.put(f"inbox/{name}/{DESCRIPTION}", toml(name).encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(num)))


@pytest.mark.parametrize("num", [120, pytest.param(1000, marks=pytest.mark.soak)])
def test_many_waiting_datasets_are_taken_in_over_several_short_ticks(platform, num):
    put_many(platform.store, num)
    asked, seconds = [], []
    for _ in range(-(-num // MAX_REQUESTS) + 1):
        started = time.monotonic()
        requests = platform.tick(inbox_sensor).run_requests
        seconds.append(time.monotonic() - started)
        assert len(requests) <= MAX_REQUESTS
        asked += [request.partition_key for request in requests]
    assert sorted(asked) == [f"many-{number:04d}" for number in range(num)], "each once"
    assert max(seconds) < 10
    assert platform.tick(inbox_sensor).run_requests == []
    assert len(json.loads(platform.cursors["inbox"])["seen"]) == num


def test_a_failed_run_is_repaired_from_where_it_failed(platform, weights):
    store = platform.store
    volume_dataset(store)
    platform.tick_and_run(inbox_sensor)
    tick = platform.tick(reconciliation_sensor)
    assert tick.run_requests == [], "scores wait for a classifier"
    import_classifier(store, weights)
    assert platform.tick_and_run(reconciliation_sensor) == {"cells": [SCORES, FILTERED]}
    assert platform.num_commits("cells") == ONCE
    assert platform.tick(reconciliation_sensor).run_requests == []


def test_a_run_whose_process_died_is_repaired_and_one_under_way_is_left_alone(local_platform):
    store, instance = local_platform.store, local_platform.instance
    volume_dataset(store)
    (request,) = local_platform.tick(inbox_sensor).run_requests
    job = build_definitions(store.url).resolve_job_def("cem_chain")
    run = instance.create_run_for_job(
        job, tags={**request.tags, "dagster/partition": "cells"}, status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset(request.asset_selection),
    )  # fmt: skip
    tick = local_platform.tick(reconciliation_sensor)
    assert tick.run_requests == [] and "a run is under way" in tick.skip_reason.skip_message
    instance.report_run_failed(run)  # as run monitoring does when the process of a run is gone
    local_platform.tick_and_run(reconciliation_sensor)
    assert local_platform.num_commits("cells")[DEDUPLICATED] == 1
    assert local_platform.tick(reconciliation_sensor).run_requests == []


def test_work_that_keeps_failing_is_tried_less_and_less_often(local_platform, monkeypatch):
    store, instance = local_platform.store, local_platform.instance
    volume_dataset(store)
    tick = local_platform.tick(reconciliation_sensor)
    assert tick.run_requests == [] and "the inbox sensor takes it in" in tick.skip_reason.skip_message
    monkeypatch.setattr("cem_assets.cem.automation.GRACE_SECONDS", 0)
    job = build_definitions(store.url).resolve_job_def("cem_chain")
    for attempt in range(3):
        (request,) = local_platform.tick(reconciliation_sensor).run_requests
        assert request.run_key.endswith(f":{attempt}")
        run = instance.create_run_for_job(job, tags={**request.tags, "dagster/partition": "cells"})
        instance.report_run_failed(run)
    tick = local_platform.tick(reconciliation_sensor)
    assert tick.run_requests == [] and "failed 3 times" in tick.skip_reason.skip_message
    later = time.time() + 3700
    monkeypatch.setattr("cem_assets.cem.automation.time.time", lambda: later)
    assert len(local_platform.tick(reconciliation_sensor).run_requests) == 1


@pytest.mark.parametrize("asset", [VOLUMES, RAW, SCORES, FILTERED])
@pytest.mark.parametrize("what", ["manifest", "object"])
def test_a_deleted_output_is_repaired_byte_for_byte(curated: Store, local_store, asset, what):
    store = copied(curated, local_store)
    with dg.DagsterInstance.ephemeral() as instance:
        platform = Platform(store, instance)
        assert platform.tick(reconciliation_sensor).run_requests == []
        before = {key: current_manifest(store, key, "cells").digest for key in CHAIN}
        manifest = current_manifest(store, asset, "cells")
        store.delete([manifest.key if what == "manifest" else f"{manifest.folder}/{manifest.objects[0].name}"])
        assert list(platform.tick_and_run(reconciliation_sensor)) == ["cells"]
        assert {key: current_manifest(store, key, "cells").digest for key in CHAIN} == before
        assert damaged_objects(store, current_manifest(store, asset, "cells")) == {}
        assert platform.num_commits("cells") == ONCE, "repaired, not committed again"
        assert platform.tick(reconciliation_sensor).run_requests == []


def test_a_damaged_manifest_holds_up_no_other_dataset(local_platform, curated):
    store = copied(curated, local_platform.store)
    manifest = current_manifest(store, RAW, "cells")
    store.put(manifest.key, json.dumps({k: v for k, v in json.loads(store.read(manifest.key)).items() if k != "run"}).encode())
    store.delete([current_manifest(store, FILTERED, "twin").key])
    for sensor in (inbox_sensor, reconciliation_sensor):
        requests = {request.partition_key: request for request in local_platform.tick(sensor).run_requests}
        assert set(requests) == {"cells", "twin"}
        assert requests["cells"].tags["cem_assets/reason"].startswith("raw_patches: its manifest is damaged")
        assert requests["twin"].tags["cem_assets/reason"] == "filtered_patches: nothing is committed"


def test_looks_that_take_several_ticks_begin_again_when_they_are_through(local_platform, curated, monkeypatch):
    store = copied(curated, local_platform.store)
    monkeypatch.setattr("cem_assets.cem.automation.TICK_SECONDS", -1)
    assert [local_platform.tick(reconciliation_sensor).run_requests for _ in range(6)] == [[]] * 6
    store.delete([current_manifest(store, FILTERED, "cells").key])  # the first of three datasets
    asked = [request for _ in range(4) for request in local_platform.tick(reconciliation_sensor).run_requests]
    assert [request.partition_key for request in asked] == ["cells"], "one dataset a tick, and one that finds the end"
    store.put(f"inbox/cells/{DESCRIPTION}", store.read(f"inbox/cells/{DESCRIPTION}"))
    asked = [request for _ in range(8) for request in local_platform.tick(inbox_sensor).run_requests]
    assert [request.partition_key for request in asked] == ["cells"]
    local_platform.cursors["reconciliation"] = "cells"  # as earlier versions wrote it
    assert "looked at 1 datasets" in local_platform.tick(reconciliation_sensor).skip_reason.skip_message
    assert json.loads(local_platform.cursors["reconciliation"]) == {"after": "pictures"}


def test_changed_settings_are_carried_out(local_platform, curated):
    store = copied(curated, local_platform.store)
    store.put(
        "settings/cem.toml", store.read("settings/cem.toml") + b"[datasets.twin.deduplicated_patches]\nmax_distance = 5\n"
    )
    assert local_platform.tick_and_run(reconciliation_sensor) == {"twin": [DEDUPLICATED, SCORES, FILTERED]}
    manifest = current_manifest(local_platform.store, DEDUPLICATED, "twin")
    assert manifest.inputs.parameters["max_distance"] == 5
    assert local_platform.tick(reconciliation_sensor).run_requests == []


def test_a_dataset_whose_files_were_taken_away_is_still_repaired(local_platform, curated):
    store = copied(curated, local_platform.store)
    store.delete([item.key for item in store.walk("inbox/cells")])
    store.put("inbox/uploading/v.nrrd", b"not complete yet")
    assert local_platform.tick(reconciliation_sensor).run_requests == []
    assert local_platform.instance.get_dynamic_partitions(em_datasets.name) == ["cells", "pictures", "twin"]
    before = current_manifest(store, RAW, "cells")
    store.delete([before.key])
    assert local_platform.tick_and_run(reconciliation_sensor) == {"cells": [RAW, DEDUPLICATED, SCORES, FILTERED]}
    assert current_manifest(store, RAW, "cells").digest == before.digest


# Releases


def evaluate(schedule, platform: Platform):
    with dg.build_schedule_context(
        platform.instance, scheduled_execution_time=datetime(2026, 11, 21, tzinfo=UTC),
        resources={"store": StoreResource(url=platform.store.url)},
    ) as context:  # fmt: skip
        return schedule(context)


def make_release(platform: Platform) -> dg.ExecuteInProcessResult:
    job = build_definitions(platform.store.url).resolve_job_def("cem_release")
    return job.execute_in_process(instance=platform.instance)


def test_a_release_is_made_only_when_something_changed(local_platform, curated):
    store = copied(curated, local_platform.store)
    assert isinstance(evaluate(release_schedule, local_platform), dg.RunRequest)
    make_release(local_platform)
    skipped = evaluate(release_schedule, local_platform)
    assert isinstance(skipped, dg.SkipReason) and "has all filtered patches as they are now" in skipped.skip_message
    store.delete([current_manifest(store, FILTERED, "twin").key])
    assert isinstance(evaluate(release_schedule, local_platform), dg.RunRequest)


def test_a_partition_that_lands_while_a_release_is_made_is_in_the_next_one(local_platform, curated, monkeypatch):
    store = copied(curated, local_platform.store)
    late = current_manifest(store, FILTERED, "twin")
    body = store.read(late.key)
    store.delete([late.key])
    compare = cem_releases._cross_dataset

    def land_meanwhile(*arguments):
        assert store.create(late.key, body)
        return compare(*arguments)

    monkeypatch.setattr(cem_releases, "_cross_dataset", land_meanwhile)
    make_release(local_platform)
    monkeypatch.undo()
    assert readers.read_release("v1", store.url).datasets["dataset"].tolist() == ["cells", "pictures"]
    assert isinstance(evaluate(release_schedule, local_platform), dg.RunRequest)
    make_release(local_platform)
    assert readers.read_release("v2", store.url).datasets["dataset"].tolist() == ["cells", "pictures", "twin"]
    assert isinstance(evaluate(release_schedule, local_platform), dg.SkipReason)


# The catalogue


@pytest.fixture
def served_catalogue(tmp_path: Path, monkeypatch):
    """Five enabled rows and one disabled row, served over HTTP on the loopback interface; the third has a wrong checksum."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, rows = f"http://127.0.0.1:{server.server_port}/", {}
    for number in range(6):
        name = f"row{number}"
        path = folder / f"{name}.nrrd"
        path.write_bytes(nrrd_bytes(cells((70, 90, 240), number)))
        digest = file_sha256(path) if number != 2 else "0" * 64
        rows[name] = catalog.EmDataset(
            name,
            number != 5,
            "volume",
            (8.0, 8.0, 8.0),
            "CC0-1.0",
            "Test et al. 2026",
            "",
            "",
            "",
            base,
            base,
            {path.name: digest},
        )
    monkeypatch.setattr("cem_assets.operations.catalogue_intake.em_datasets", lambda: rows)
    monkeypatch.setenv("CEM_ASSETS_ALLOW_PRIVATE_SOURCES", "yes")
    yield rows
    server.shutdown()


def test_enabled_rows_are_fetched_a_few_a_day_and_a_bad_one_does_not_hold_up_the_others(local_platform, served_catalogue):
    taken = []
    for _ in range(2):
        requests = evaluate(catalogue_schedule, local_platform)
        assert len(requests) == 3
        for request in requests:
            name = request.tags["cem_assets/catalogue"]
            job = build_definitions(local_platform.store.url).resolve_job_def("catalogue_intake")
            result = job.execute_in_process(
                run_config=request.run_config, tags=dict(request.tags), instance=local_platform.instance, raise_on_error=False
            )
            assert result.success == (name != "row2")
            taken.append(name)
    assert taken == ["row0", "row1", "row2", "row3", "row4", "row2"]
    platform_datasets = {request.partition_key for request in local_platform.tick(inbox_sensor).run_requests}
    assert platform_datasets == {"row0", "row1", "row3", "row4"}, "the inbox takes it from there; row5 is not enabled"
    assert [r.tags["cem_assets/catalogue"] for r in evaluate(catalogue_schedule, local_platform)] == ["row2"]


def test_enabled_rows_of_microscopy_sources_are_fetched_too(local_platform, tmp_path: Path, monkeypatch):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "wells.csv").write_text("Plate,Well\nP,A1\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/wells.csv"
    row = microscopy.microscopy_sources()["idr0036"]
    known = (file_sha256(folder / "wells.csv"), address, "tables/idr0036-screenA-library.txt")
    rows = {
        "idr0036": replace(row, is_enabled=True, downloads=(known,)),
        "idr0013": replace(row, name="idr0013", is_enabled=False, downloads=(known,)),
        "bbbc013": replace(row, name="bbbc013", is_enabled=True, downloads=()),
    }
    monkeypatch.setattr("cem_assets.operations.catalogue_intake.microscopy_sources", lambda: rows)
    monkeypatch.setattr("cem_assets.operations.catalogue_intake.em_datasets", dict)
    monkeypatch.setenv("CEM_ASSETS_ALLOW_PRIVATE_SOURCES", "yes")
    requests = evaluate(catalogue_schedule, local_platform)
    assert [request.tags["cem_assets/catalogue"] for request in requests] == ["bbbc013", "idr0036"]
    with pytest.raises(ValueError, match=r"drop them with a source.toml \(recipe = 'bbbc013'\) into inbox/bbbc013/"):
        fetch_row(local_platform.store, "bbbc013")
    assert fetch_row(local_platform.store, "idr0036") == "idr0036"
    assert local_platform.store.read("inbox/idr0036/tables/idr0036-screenA-library.txt").startswith(b"Plate")
    (request,) = local_platform.tick(cytoimagenet_sensor).run_requests
    assert (request.job_name, request.partition_key) == ("cyto_sources", "idr0036")
    assert [r.tags["cem_assets/catalogue"] for r in evaluate(catalogue_schedule, local_platform)] == ["bbbc013"]
    server.shutdown()


def test_what_the_catalogue_says_can_be_fetched_is_checked_byte_for_byte():
    """An enabled row needs a registry, which has digests, https URLs and plain paths."""
    for row in microscopy.microscopy_sources().values():
        assert row.downloads or not row.is_enabled
        for sha256, address, path in row.downloads:
            assert len(sha256) == 64 and address.startswith("https://") and path_problem(path) is None
