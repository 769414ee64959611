"""A store written by version 0.1.0 is read and continued: nothing that it holds is computed or written again.

`store_of_0_1_0.tar.xz` was made by the code of commit 02cdfd9 with `store_of_0_1_0.py`, which says how to repeat it. A change
of a code version in `cem_assets.store.assets` makes such a store stale on purpose; then the changed asset is named here.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cem_assets import readers
from cem_assets.benchmarks import scoring as entry
from cem_assets.benchmarks.contamination.stage import check_contamination
from cem_assets.benchmarks.data.stage import prepare_benchmark
from cem_assets.benchmarks.rows import require_benchmark
from cem_assets.catalog.weights import ImportedWeights
from cem_assets.cem.classifier import network
from cem_assets.cem.classifier.params import ClassifierParams, ScoreParams
from cem_assets.cem.classifier.stage import ClassifierSource, Origin, make_classifier
from cem_assets.cem.filter.params import FilterParams
from cem_assets.cem.filter.stage import keep_informative, score_patches
from cem_assets.cem.patches.dedup import DedupParams
from cem_assets.cem.patches.stage import PatchifyParams, choose_exemplars, cut_and_hash
from cem_assets.cem.reconciliation import classifier_digest, is_release_due, look_at_all, needed_work
from cem_assets.cem.releases.stage import make_release
from cem_assets.cem.settings import Settings
from cem_assets.cem.subvolumes.places import SubvolumeParams
from cem_assets.cem.subvolumes.stage import cut_subvolumes
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.cytoimagenet import reconciliation as cyto_reconciliation
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.held_out.stage import fingerprint_test_images
from cem_assets.cytoimagenet.labels.stage import LabelTableParams, label_entries, make_label_table
from cem_assets.cytoimagenet.releases.stage import is_cyto_release_due, make_cyto_release
from cem_assets.cytoimagenet.sources import stage as sources_stage
from cem_assets.execution.local import LocalEngine
from cem_assets.execution.stage import StageResult
from cem_assets.pretraining.weights.importing import import_weights
from cem_assets.store.assets import BENCHMARK_FEATURES, CLASSIFIER, FILTERED, LABEL_TABLE, SCORES, SOURCE_METADATA
from cem_assets.store.manifests import damaged_objects, require_manifest
from cem_assets.store.store import Store, open_store
from cem_assets_tests.compatibility import store_of_0_1_0 as made
from cem_assets_tests.datasets import nrrd_bytes, put_in_inbox

ARCHIVE = Path(__file__).with_name("store_of_0_1_0.tar.xz")
SETTINGS = Settings(overrides={("", SCORES): {"batch_size": made.SCORING["batch_size"]}})
CYTO_SETTINGS = cyto_reconciliation.CytoSettings(LabelTableParams(**made.LABEL_TABLE), CropStageParams(**made.CROPPING))


@pytest.fixture
def old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The unpacked store; its sources keep the vocabulary they were made with, because adding terms is no change of code."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    store = open_store(str(tmp_path / "store"))
    terms = require_manifest(store, SOURCE_METADATA, "one").inputs.parameters["terms"]
    for module in (cyto_reconciliation, sources_stage):
        monkeypatch.setattr(module, "terms", lambda: terms)
    return store


def files_of(store: Store) -> dict[str, tuple[int, int]]:
    """List size and time of change of every file, for a comparison before and after."""
    files = [path for path in Path(store.url).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def folders_with_manifests(store: Store) -> set[str]:
    return {path.parents[1].relative_to(store.url).as_posix() for path in Path(store.url).rglob("_manifests/1.json")}


def classifier_file(store: Store) -> str:
    return store.url_of(f"{require_manifest(store, CLASSIFIER).folder}/{made.CLASSIFIER_FILE}")


def run_chain(store: Store, dataset: str) -> Iterator[StageResult]:
    yield standardize_dataset(store, dataset)
    yield cut_and_hash(store, dataset, PatchifyParams())
    yield choose_exemplars(store, dataset, DedupParams())
    yield score_patches(store, dataset, ScoreParams(**made.SCORING))
    yield keep_informative(store, dataset, FilterParams(threshold=made.THRESHOLD))


def run_cem(store: Store) -> Iterator[StageResult]:
    source = ClassifierSource(source=Origin.file, file=classifier_file(store))
    yield make_classifier(store, source, ClassifierParams(device="cpu")).stage
    for dataset in made.DATASETS:
        yield from run_chain(store, dataset)
    yield cut_subvolumes(store, "cells", SubvolumeParams(**made.SUBVOLUMES))
    yield make_release(store)


def run_cytoimagenet(store: Store) -> Iterator[StageResult]:
    for source in made.SOURCES:
        yield sources_stage.standardize_source(store, source)
    yield fingerprint_test_images(store)
    yield make_label_table(store, LabelTableParams(**made.LABEL_TABLE))
    for key in label_entries(store, require_manifest(store, LABEL_TABLE)):
        yield make_crops(store, key, CropStageParams(**made.CROPPING), engine=LocalEngine(1))
    yield make_cyto_release(store)


def run_benchmarks(store: Store, files: Path) -> Iterator[StageResult]:
    yield import_weights(store, ImportedWeights(**made.WEIGHTS_ROW))
    for name in made.BENCHMARKS:
        yield prepare_benchmark(store, require_benchmark(store, name), files / name)
    yield entry.score_benchmark(store, made.TRANSFER, made.WEIGHTS, entry.BenchmarkScoreParams(**made.TRANSFER_SCORING))
    for line in ("cem", "cytoimagenet"):
        yield check_contamination(store, line)


def test_no_stage_computes_or_writes_anything_again(old_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Scores belong to the processor and the torch build that made them; here they are asked for as on that machine.
    pins = dict(require_manifest(old_store, SCORES, "cells").inputs.pins)
    monkeypatch.setattr(network, "environment", lambda params: pins)
    before = files_of(old_store)
    results = [*run_cem(old_store), *run_cytoimagenet(old_store), *run_benchmarks(old_store, tmp_path / "benchmark_files")]
    assert [result.manifest.inputs.folder for result in results if result.is_new] == []
    assert files_of(old_store) == before
    asked = {result.manifest.inputs.folder for result in results}
    left = {name for name in folders_with_manifests(old_store) if name not in asked}
    assert len(asked) == 32 and all(name.startswith(f"{BENCHMARK_FEATURES}/") for name in left)  # a score asks for its features


def test_reconciliation_asks_for_nothing(old_store: Store):
    states = list(look_at_all(old_store))
    assert [state.dataset for state in states] == sorted(made.DATASETS)
    assert needed_work(states, classifier_digest(old_store), SETTINGS) == []
    assert not is_release_due(old_store) and not is_cyto_release_due(old_store)
    works = dict(cyto_reconciliation.source_works(old_store)) | dict(cyto_reconciliation.crop_works(old_store, CYTO_SETTINGS))
    works["test images"] = cyto_reconciliation.test_images_work(old_store)
    works["label table"] = cyto_reconciliation.label_table_work(old_store, CYTO_SETTINGS)
    assert len(works) == 7 and set(works.values()) == {None}


def test_readers_read_what_it_holds(old_store: Store):
    root = old_store.url
    release = readers.read_release(root=root)
    assert (readers.list_releases(root), release.version) == (["v1"], "v1")
    assert release.num_patches == len(release.patches()) == sum(1 for _ in release.iter_images())
    assert readers.list_datasets(root) == sorted(made.DATASETS)
    assert readers.open_volume("chunked", root=root).shape == (66, 72, 80)
    for stage in ("raw", "deduplicated", "scores", "filtered"):
        images = dict(readers.iter_images("cells", stage, root))
        assert list(images) == readers.read_patches("cells", stage, root)["name"].tolist()
    assert len(readers.read_labels(root)) == 12 and len(readers.read_cyto_release(root=root).metadata()) == 48
    scores = readers.read_scores(made.TRANSFER, made.WEIGHTS, root)
    assert set(scores["metric"]) == {"knn_accuracy"}
    assert readers.load_weights(made.WEIGHTS, "efficientnet_b0", root=root) is not None


def test_a_new_dataset_alone_is_computed_and_the_next_release_is_v2(old_store: Store):
    before = files_of(old_store)
    old_filtered = {name: require_manifest(old_store, FILTERED, name).digest for name in made.DATASETS}
    put_in_inbox(old_store, made.NEW_DATASET, {"v.nrrd": nrrd_bytes(made.smooth((64, 70, 66), 99))})
    work = needed_work(list(look_at_all(old_store)), classifier_digest(old_store), SETTINGS)
    assert [item.dataset for item in work] == [made.NEW_DATASET]
    assert all(
        result.is_new and not damaged_objects(old_store, result.manifest) for result in run_chain(old_store, made.NEW_DATASET)
    )
    assert needed_work(list(look_at_all(old_store)), classifier_digest(old_store), SETTINGS) == []
    release = make_release(old_store)
    assert release.is_new and release.manifest.inputs.partition == "v2" and release.manifest.details["sequence"] == 2
    assert {
        f"{FILTERED}/{name}": digest for name, digest in old_filtered.items()
    }.items() <= release.manifest.inputs.upstream.items()
    assert readers.list_releases(old_store.url) == ["v1", "v2"]
    after = files_of(old_store)
    assert {name: after[name] for name in before} == before
