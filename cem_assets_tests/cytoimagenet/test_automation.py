"""CytoImageNet's automation makes a release from a source in the inbox, tick by tick, and repairs what is damaged."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from cem_assets import readers
from cem_assets.cli.demo.cytoimagenet import write_phantom_source
from cem_assets.cytoimagenet.automation import cyto_release_schedule, cytoimagenet_sensor
from cem_assets.cytoimagenet.phantom.screens import phantom_sources
from cem_assets.cytoimagenet.reconciliation import SETTINGS
from cem_assets.cytoimagenet.sources.inbox import register_source
from cem_assets.platform.attempts import MAX_REQUESTS
from cem_assets.platform.resources import StoreResource
from cem_assets.store.assets import CROPS, CYTO_RELEASES, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES
from cem_assets.store.manifests import committed_partitions, current_manifest, manifest_numbers
from cem_assets.store.store import Store
from cem_assets_tests.platform.ticks import Platform

SMALL = b"[label_table]\nmin_images = 12\nmax_images = 60\npresample_images = 100\n[crops]\nmin_images = 10\n"
TOML = """
name = "{name}"
licence = "CC0-1.0"
[[tables]]
name = "t"
files = ["t.csv"]
[columns]
filename = {{ column = "file" }}
compound = {{ column = "compound" }}
"""


@pytest.fixture
def platform(local_store: Store):
    with dg.instance_for_test() as instance:
        yield Platform(local_store, instance)


@pytest.fixture(scope="module")
def lineup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources") / "phantom_lineup"
    write_phantom_source(phantom_sources(3)[2], folder)
    return folder


def tick_and_run(platform: Platform) -> list[tuple[str, str | None]]:
    """Tick once, run what was requested, and return job and partition of each request."""
    asked = platform.tick(cytoimagenet_sensor).run_requests
    for request in asked:
        platform.run(request)
    return [(request.job_name, request.partition_key) for request in asked]


def settle(platform: Platform) -> list[list[tuple[str, str | None]]]:
    """Tick until nothing is requested."""
    ticks = []
    while asked := tick_and_run(platform):
        ticks.append(asked)
        assert len(ticks) < 10, "it never settles"
    return ticks


def put_table(store: Store, name: str, text: str = "file,compound\na.tif,x\nb.tif,y\n") -> None:
    store.put(f"inbox/{name}/t.csv", text.encode())
    store.put(f"inbox/{name}/source.toml", TOML.format(name=name).encode())


def test_a_source_in_the_inbox_is_in_a_release_without_any_command(platform: Platform, lineup):
    platform.store.put(SETTINGS, SMALL)
    register_source(platform.store, lineup)
    sources, labels, crops = settle(platform)
    assert sources == [("cyto_sources", "phantom_lineup")]
    assert labels == [("cyto_label_table", None)]
    assert {job for job, _ in crops} == {"cyto_crops"}
    keys = {key for _, key in crops}
    assert (
        keys == set(committed_partitions(platform.store, CROPS)) == set(platform.instance.get_dynamic_partitions("cyto_labels"))
    )
    with dg.build_schedule_context(
        platform.instance,
        resources={"store": StoreResource(url=platform.store.url)},
        scheduled_execution_time=datetime.now(UTC),
    ) as context:
        request = cyto_release_schedule(context)
        assert isinstance(request, dg.RunRequest)
        job = platform.run(dg.RunRequest(job_name="cyto_release", run_config={
            "ops": {"cytoimagenet__class_maps": {"config": {"max_images": 3}}}}))  # fmt: skip
        assert job.success
        assert isinstance(cyto_release_schedule(context), dg.SkipReason)
    release = readers.read_cyto_release(root=platform.store.url)
    assert release.version == "v1" and release.num_images == len(release.metadata()) > 50
    pictures = list(release.iter_images())
    assert len(pictures) == release.num_images and {label for label, _, _ in pictures} == set(release.labels["label"])
    assert len(readers.read_source_metadata("phantom_lineup", platform.store.url)) == 80
    assert not tick_and_run(platform), "nothing is left to do"
    assert all(manifest_numbers(platform.store, f"{CROPS}/{key}") == [1] for key in keys)
    shown = platform.instance.get_latest_materialization_event(
        dg.AssetKey(CYTO_RELEASES.split("/"))
    ).asset_materialization.metadata
    assert {"labels per category", "crops by scale and source", "dataset_card", "version"} <= set(shown)
    crop = platform.instance.get_latest_materialization_event(dg.AssetKey(CROPS.split("/"))).asset_materialization
    assert crop.metadata["label"].value in crop.metadata, "the class grid is shown under the label's name"


def test_what_is_deleted_or_set_otherwise_is_asked_for_again(platform: Platform, lineup):
    platform.store.put(SETTINGS, SMALL)
    register_source(platform.store, lineup)
    settle(platform)
    key = committed_partitions(platform.store, CROPS)[0]
    manifest = current_manifest(platform.store, CROPS, key)
    platform.store.delete([f"{manifest.folder}/part-00000.parquet"])
    assert settle(platform) == [[("cyto_crops", key)]]
    platform.store.put(SETTINGS, SMALL + b"seed = 4\n")
    (again,) = settle(platform)
    assert len(again) == len(committed_partitions(platform.store, CROPS))
    assert current_manifest(platform.store, CROPS, key).inputs.parameters["seed"] == 4


def test_an_upload_repeated_is_looked_at_once_and_a_changed_one_goes_through(platform: Platform):
    put_table(platform.store, "plain")
    platform.store.put(SETTINGS, b"[label_table]\nmin_images = 1\nwith_images_only = false\n")
    ticks = settle(platform)
    assert ticks[0] == [("cyto_sources", "plain")] and ticks[1] == [("cyto_label_table", None)]
    put_table(platform.store, "plain")
    assert settle(platform) == [[("cyto_sources", "plain")]]
    assert manifest_numbers(platform.store, f"{SOURCE_METADATA}/plain") == [1]
    put_table(platform.store, "plain", "file,compound\na.tif,x\nb.tif,z\nc.tif,z\n")
    ticks = settle(platform)
    assert ticks[0] == [("cyto_sources", "plain")] and ticks[1] == [("cyto_label_table", None)]
    assert manifest_numbers(platform.store, f"{SOURCE_METADATA}/plain") == [1, 2]
    labels = {readers.read_labels(root=platform.store.url)["label"].iloc[n] for n in range(3)}
    assert labels == {"x", "z"}


def test_a_broken_source_fails_once_in_words_and_is_taken_up_when_repaired(platform: Platform):
    put_table(platform.store, "good")
    platform.store.put(SETTINGS, b"[label_table]\nmin_images = 1\nwith_images_only = false\n")
    platform.store.put("inbox/bad/t.csv", b"file,compound\na.tif,x\n")
    platform.store.put("inbox/bad/source.toml", TOML.format(name="bad").replace('"file"', '"fil"').encode())
    settle(platform)
    assert committed_partitions(platform.store, SOURCE_METADATA) == ["good"]
    assert "comes from 'fil'" in platform.store.read("quarantine/bad/report.md").decode()
    assert current_manifest(platform.store, LABEL_TABLE) is not None, "the others go on"
    assert not tick_and_run(platform), "bad data is not tried again"
    platform.store.put("inbox/bad/source.toml", TOML.format(name="bad").encode())
    assert settle(platform)[0] == [("cyto_sources", "bad")]
    assert platform.store.size("quarantine/bad/report.md") is None


def test_many_sources_are_taken_in_over_several_ticks(platform: Platform):
    for number in range(MAX_REQUESTS + 4):
        put_table(platform.store, f"s{number:02d}")
    first, second = platform.tick(cytoimagenet_sensor), platform.tick(cytoimagenet_sensor)
    asked = [request.partition_key for request in (*first.run_requests, *second.run_requests)]
    assert len(first.run_requests) == MAX_REQUESTS and len(set(asked)) == MAX_REQUESTS + 4


def test_test_sets_are_fingerprinted_before_crops(platform: Platform, lineup):
    platform.store.put(SETTINGS, SMALL)
    register_source(platform.store, lineup)
    put_table(platform.store, "held_out")
    text = platform.store.read("inbox/held_out/source.toml").decode()
    platform.store.put("inbox/held_out/source.toml", text.replace("licence", 'role = "test"\nlicence').encode())
    ticks = settle(platform)
    assert sorted(ticks[1]) == [("cyto_label_table", None), ("cyto_test_images", None)]
    key = committed_partitions(platform.store, CROPS)[0]
    assert TEST_IMAGES in current_manifest(platform.store, CROPS, key).inputs.upstream
