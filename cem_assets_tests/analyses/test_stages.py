"""Analyses of weights on small stores, local and S3: known numbers, real pictures, comparisons, MLflow and bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from cem_assets.analyses.checks import analyses_are_whole, comparisons_are_whole
from cem_assets.analyses.comparisons.stage import compare_weights
from cem_assets.analyses.datasets import stage as analysis_datasets
from cem_assets.analyses.datasets.stage import map_datasets, measure_datasets, read_distances, read_points
from cem_assets.analyses.images import ImageParams, plan_images
from cem_assets.analyses.invariance import stage as analysis_invariance
from cem_assets.analyses.invariance.stage import analyse_invariance, read_rates
from cem_assets.analyses.occlusion import stage as analysis_occlusion
from cem_assets.analyses.occlusion.stage import analyse_occlusion, read_maps
from cem_assets.analyses.organelles.masks import MaskedParams, plan_masked
from cem_assets.analyses.organelles.stage import analyse_organelles
from cem_assets.analyses.params import FrechetParams, InvarianceParams, MapParams, MaskParams, OcclusionParams
from cem_assets.analyses.results import ANALYSES, results_of
from cem_assets.cem.releases.stage import make_release
from cem_assets.operations.maintenance import sweep
from cem_assets.store.assets import DATASET_DISTANCES, INVARIANCE, OCCLUSION
from cem_assets.store.manifests import Manifest
from cem_assets.store.store import Store, open_store
from cem_assets_tests.analyses.encoders import FourQuadrants
from cem_assets_tests.benchmarks.benchmark_sets import put_weights
from cem_assets_tests.cytoimagenet.example_sources import copy_of
from cem_assets_tests.pretraining.training_sets import PERIODS_PX, put_filtered, textures

QUICK = InvarianceParams(global_rate=0.3, strengths={"brightness": [0.5, 1.0], "blur": [0, 2]})


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory) -> Path:
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def client(empty_mlflow, tmp_path, monkeypatch):
    """Give each test an MLflow of its own from a copy, because making its database takes seconds."""
    import mlflow

    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Store:
    """Make a store with two encoders, two datasets of textures and a release of both; tests copy it and never write to it."""
    store = open_store(str(tmp_path_factory.mktemp("made")))
    put_weights(store, "first", arch="efficientnet_b0")
    put_weights(store, "noise", method="random", seed=1, arch="efficientnet_b0")
    for number, dataset in enumerate(("coarse", "fine")):
        put_filtered(store, dataset, textures(PERIODS_PX[dataset], 8, number))
    make_release(store)
    return store


@pytest.fixture
def sets(made, local_store) -> Store:
    return copy_of(made, local_store)


def tables_of(store: Store, manifest, name: str):
    with store.open(f"{manifest.folder}/{name}.parquet") as handle:
        return pq.ParquetFile(handle).read().to_pandas()


def pictures(folder: Path, values: dict[str, np.ndarray]) -> str:
    for name, pixels in values.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return str(folder)


def tiny_network(monkeypatch, module) -> None:
    """Replace the encoder of a stage by one that returns the means of an image's quadrants, without normalisation."""
    monkeypatch.setattr(module, "build_weights", lambda *_: (FourQuadrants(), (0.0, 1.0)))


ROTATED = InvarianceParams(global_rate=0.3, strengths={"rotation": [0, 90]})


def test_all_analyses_repeat_themselves_and_are_set_side_by_side(sets, tmp_path):
    store = sets
    folder = pictures(
        tmp_path / "organelles",
        {f"{which}/er{n}.png": image for n in (1, 2) for which, image in zip(("images", "masks"), _striped(n), strict=True)},
    )
    images = ImageParams(datasets=["coarse", "fine"], num_images=6)
    done = {}
    for name in ("first", "noise"):
        done[name] = [
            analyse_invariance(store, name, images, ROTATED, "cpu"),
            analyse_occlusion(store, name, ImageParams(num_images=2), OcclusionParams(square_px=112, stride_px=112), "cpu"),
            analyse_organelles(store, name, MaskedParams(folder=folder), MaskParams(num_channels=4), "cpu"),
            map_datasets(store, name, images, MapParams(), "cpu"),
            measure_datasets(store, name, images, FrechetParams(num_bootstrap=2), "cpu"),
        ]
    for place, (analysis, asset) in enumerate(ANALYSES.items()):
        ours, other = (done[name][place].manifest for name in ("first", "noise"))
        assert ours.inputs.asset == asset and ours.inputs.partition.startswith("first/")
        assert ours.inputs.partition.split("/")[1] == other.inputs.partition.split("/")[1]
        assert analyses_are_whole(store, "first", asset).passed
        _compared(store, analysis)
        for item in ours.find(".png"):
            assert store.size(f"{ours.folder}/{item.name}") <= 100_000
    assert comparisons_are_whole(store).passed
    _repeats_itself(store, images, done["first"][0].manifest)
    assert sweep(store, min_age_hours=0).num_objects == 0, "nothing current is swept"


def test_an_analysis_on_s3(s3_store, made):
    for top in made.folders(""):
        for item in made.walk(top):
            s3_store.put(item.key, Path(made.url_of(item.key)))
    images = ImageParams(num_images=4)
    first, _ = (analyse_invariance(s3_store, name, images, ROTATED, "cpu").manifest for name in ("first", "noise"))
    _compared(s3_store, "invariance")
    assert comparisons_are_whole(s3_store).passed
    _repeats_itself(s3_store, images, first)
    assert sweep(s3_store, min_age_hours=0).num_objects == 0


def _compared(store: Store, analysis: str) -> None:
    compared = compare_weights(store, analysis)
    assert compared.manifest.inputs.parameters == {"weights": ["first", "noise"]}, "random weights come last"
    assert compare_weights(store, analysis).is_new is False
    assert store.read(f"{compared.manifest.folder}/comparison.png").startswith(b"\x89PNG")
    assert set(tables_of(store, compared.manifest, "numbers")["weights"]) == {"first", "noise"}


def _repeats_itself(store: Store, images: ImageParams, before: Manifest) -> None:
    again = analyse_invariance(store, "first", images, ROTATED, "cpu")
    assert not again.is_new and again.manifest.digest == before.digest
    store.delete([f"{before.folder}/firing_rates.png"])
    assert not analyses_are_whole(store, "first", INVARIANCE).passed
    repeated = analyse_invariance(store, "first", images, ROTATED, "cpu")
    assert repeated.is_new and repeated.manifest.digest == before.digest, "the same bytes again"


def _striped(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = np.zeros((64, 96), np.uint8)
    mask[16:40, 16 * seed : 16 * seed + 40] = 255
    return np.clip(generator.normal(90, 12, mask.shape) + mask // 3, 0, 255).astype(np.uint8), mask


def test_firing_rates_of_a_tiny_network_by_hand(sets, tmp_path, monkeypatch):
    tiny_network(monkeypatch, analysis_invariance)
    # Of ten even images 10, 20, ... 100 three fire (80, 90, 100; the threshold is 75). At half the brightness none does.
    folder = pictures(tmp_path / "even", {f"{n:02}.png": np.full((224, 224), 10 * n, np.uint8) for n in range(1, 11)})
    params = InvarianceParams(
        global_rate=0.3, strengths={"brightness": [0.5, 0.9, 1.0], "rotation": [90, 180], "contrast": [0]}
    )
    result = analyse_invariance(sets, "first", ImageParams(folder=folder), params, "cpu")
    rates = read_rates(sets, result.manifest)
    assert np.allclose(rates["brightness"].mean_rates, [0, 2 / 3, 1])  # at 0.9: 72, 81, 90
    assert rates["rotation"].mean_rates.tolist() == [1, 1] and rates["contrast"].mean_rates.tolist() == [1]
    assert np.allclose(rates["blur"].global_rates if "blur" in rates else rates["rotation"].global_rates, 0.3)
    numbers = result.manifest.details["numbers"]
    assert numbers["mean_rate_brightness"] == pytest.approx(1 / 3, abs=1e-5) and numbers["chance"] == pytest.approx(0.3)
    assert result.manifest.counts["images"] == 10 and result.manifest.counts["units"] == 4
    means = tables_of(sets, result.manifest, "mean_rates")
    assert means["mean_rate"].tolist() == pytest.approx([0, 2 / 3, 1, 1, 1, 1])


def test_occlusion_of_a_tiny_network_by_hand(sets, tmp_path, monkeypatch):
    tiny_network(monkeypatch, analysis_occlusion)
    image = np.zeros((40, 40), np.uint8)
    image[:20, :20], image[20:, 20:] = 255, 255  # features (1, 0, 0, 1)
    folder = pictures(tmp_path / "two", {"a.png": image, "b.png": 255 - image})
    params = OcclusionParams(square_px=20, stride_px=20, fill="black")
    result = analyse_occlusion(sets, "first", ImageParams(folder=folder), params, "cpu")
    # Covering one bright quadrant leaves (0, 0, 0, 1): cosine 1 / sqrt 2; covering a black one changes nothing.
    drop = 1 - 1 / np.sqrt(2)
    found = tables_of(sets, result.manifest, "drops")
    assert found[found["name"] == "a.png"]["drop"].tolist() == pytest.approx([drop, 0, 0, drop], abs=1e-6)
    images, maps = read_maps(sets, result.manifest)
    assert np.array_equal(images[0], image)
    assert np.allclose(maps[0].pixel_drops, np.where(image > 0, drop, 0), atol=1e-6)
    numbers = result.manifest.details["numbers"]
    assert numbers["mean_drop"] == pytest.approx(drop / 2, abs=1e-5) and numbers["top_tenth_share"] == pytest.approx(0.2)


def test_distances_and_neighbours_of_a_tiny_network_by_hand(sets, tmp_path, monkeypatch):
    tiny_network(monkeypatch, analysis_datasets)

    def even(first: int) -> dict[str, np.ndarray]:
        return {f"{first}/{n}.png": np.full((224, 224), first + 51 * n, np.uint8) for n in range(3)}

    folder = pictures(tmp_path / "sets", even(0) | even(102))
    params = FrechetParams(shrinkage="none", num_bootstrap=0)
    result = measure_datasets(sets, "first", ImageParams(folder=folder), params, "cpu")
    names, table = read_distances(sets, result.manifest)
    # The means differ by 0.4 in each of four columns and the covariances are equal, which gives 4 x 0.4 ** 2.
    assert names == ["0", "102"] and np.allclose(table, [[0, 0.64], [0.64, 0]], atol=1e-4)
    folder = pictures(
        tmp_path / "sides",
        {f"{side}/{n}.png": _quadrant(side == "left", n) for side in ("left", "right") for n in range(3)},
    )
    mapped = map_datasets(sets, "first", ImageParams(folder=folder), MapParams(num_neighbors=2), "cpu")
    assert mapped.manifest.details["numbers"] == {"own_neighbours": 1.0, "chance": 0.4}
    labels, points = read_points(sets, mapped.manifest)
    assert labels == ["left"] * 3 + ["right"] * 3 and np.abs(points[:3].mean(axis=0) - points[3:].mean(axis=0)).max() > 0.5


def _quadrant(is_left: bool, number: int) -> np.ndarray:
    image = np.zeros((224, 224), np.uint8)
    image[: 112 + 20 * number, :112] = 200
    return image if is_left else np.ascontiguousarray(image[:, ::-1])


def test_real_pictures_and_masks(sets, test_data):
    put_weights(sets, "resnet")  # resnet18: maps are made finer
    folder = test_data / "em2d/cem_dataset_examples"
    params = MaskParams(num_channels=8, downsampling=16)
    done = []
    chosen = MaskedParams(folder=str(folder / "correlation"), max_images=2)
    result = analyse_organelles(sets, "resnet", chosen, params, "cpu", progress=lambda *told: done.append(told))
    frame = tables_of(sets, result.manifest, "organelles").set_index("organelle")
    assert frame["num_images"].to_dict() == {"canalicular_channels": 1, "er": 1, "mitochondria": 2, "nuclei": 1}
    assert frame["mask_share"]["er"] == pytest.approx(0.12171157525510204) and done == [(n, 4) for n in (1, 2, 3, 4)]
    channels = tables_of(sets, result.manifest, "channels")
    assert len(channels) == 5 * 512 and channels["correlation"].abs().max() <= 1
    best = channels[channels["organelle"] == "nuclei"].sort_values("correlation").iloc[-1]
    assert best["channel"] == frame["best_channel"]["nuclei"]
    assert best["correlation"] == pytest.approx(frame["best_correlation"]["nuclei"])
    assert {item.name for item in result.manifest.find(".png")} >= {"organelles.png", "organelle-02-mitochondria.png"}
    covered = analyse_occlusion(
        sets, "first", ImageParams(folder=str(folder / "occlusion"), num_images=2), OcclusionParams(stride_px=48), "cpu"
    )
    assert covered.manifest.counts["images"] == 2 and analyses_are_whole(sets, "first", OCCLUSION).passed


def test_mlflow_is_told_numbers_parameters_and_figures(sets, client):
    images = ImageParams(datasets=["fine"], num_images=4)
    result = analyse_invariance(sets, "first", images, QUICK, "cpu")
    compared = compare_weights(sets, "invariance")
    (run,) = client.search_runs([client.get_experiment_by_name("analyses/invariance").experiment_id])
    assert run.data.tags["digest"] == result.manifest.digest and run.info.run_name == "first" and run.info.status == "FINISHED"
    numbers = result.manifest.details["numbers"]
    assert run.data.metrics["mean_rate_blur"] == pytest.approx(numbers["mean_rate_blur"], rel=1e-4)
    assert run.data.params["global_rate"] == "0.3" and run.data.params["num_images"] == "4"
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["firing_rates.png"]
    (run,) = client.search_runs([client.get_experiment_by_name("analyses/comparisons").experiment_id])
    assert run.data.tags["digest"] == compared.manifest.digest and "mean_rate_blur/first" in run.data.metrics


def test_images_are_drawn_evenly_and_more_of_them_only_add(sets):
    few, many = (
        plan_images(sets, ImageParams(datasets=["fine", "coarse"], num_images=num, image_seed=3)).read() for num in (4, 10)
    )
    assert few.datasets == ("coarse",) * 2 + ("fine",) * 2 and many.datasets.count("fine") == 5
    assert set(few.names) <= set(many.names)
    assert few.names != plan_images(sets, ImageParams(datasets=["fine", "coarse"], num_images=4)).read().names
    released = plan_images(sets, ImageParams(num_images=4, image_seed=3))
    assert released.source == "release v1" and released.read().names == few.names
    every = plan_images(sets, ImageParams(release="v1", num_images=100)).read()
    assert len(every.images) == 16 and every.fitted().shape == (16, 224, 224)


def test_pictures_of_any_size_and_depth_are_fitted_and_a_folder_is_known_by_what_it_holds(sets, tmp_path):
    folder = tmp_path / "mixed"
    small, large = (np.random.default_rng(n).integers(0, 256, size, np.uint8) for n, size in ((1, (100, 224)), (2, (300, 250))))
    pictures(folder, {"small.png": small, "large.png": large})
    tifffile.imwrite(folder / "deep.tif", (np.arange(224 * 224).reshape(224, 224) % 4096).astype(np.uint16))
    (folder / "notes.txt").write_text("no picture")
    plan = plan_images(sets, ImageParams(folder=str(folder)))
    found = plan.read()
    assert found.names == ("deep.tif", "large.png", "small.png") and {image.dtype for image in found.images} == {np.dtype("u1")}
    fitted = found.fitted()
    assert np.array_equal(fitted[1], large[38:262, 13:237]) and np.array_equal(fitted[2][62:162], small)
    assert np.array_equal(fitted[2][61], small[0]) and np.array_equal(fitted[2][162], small[-1]), "mirrored about the border"
    for path in folder.iterdir():
        sets.put(f"analyses/inbox/other/{path.name}", path)
    assert plan_images(sets, ImageParams(folder="analyses/inbox/other")).upstream == plan.upstream


def test_bad_images_and_weights_are_told(sets, tmp_path):
    for params, error, told in (
        (ImageParams(datasets=["fine"], release="v1"), ValueError, "from datasets and from release"),
        (ImageParams(datasets=["fine", "fine"]), ValueError, "each of them once"),
        (ImageParams(datasets=["nobody"]), FileNotFoundError, "nobody.*Committed partitions: coarse, fine"),
        (ImageParams(release="v9"), FileNotFoundError, "expected one of v1"),
        (ImageParams(folder="/nowhere/at/all"), FileNotFoundError, "no folder"),
        (ImageParams(folder="nothing/here"), FileNotFoundError, "nothing under 'nothing/here'"),
        (ImageParams(folder="../up"), ValueError, "not allowed"),
        (ImageParams(folder=pictures(tmp_path / "one", {"a.png": np.zeros((50, 50), np.uint8)})), ValueError, "two or more"),
    ):
        with pytest.raises(error, match=told):
            analyse_invariance(sets, "first", params, QUICK, "cpu")
    with pytest.raises(ValueError, match="weights 'nobody' are not known; expected one of .*first"):
        analyse_invariance(sets, "nobody", ImageParams(), QUICK)
    with pytest.raises(FileNotFoundError, match="weights train random_resnet50.*In the store are: first, noise"):
        analyse_invariance(sets, "random_resnet50", ImageParams(), QUICK)
    with pytest.raises(ValueError, match="one dataset, fine; expected two"):
        measure_datasets(sets, "first", ImageParams(datasets=["fine"]), FrechetParams())
    with pytest.raises(ValueError, match=r"smaller than the square of 300 px: fine-LOC"):
        analyse_occlusion(sets, "first", ImageParams(datasets=["fine"], num_images=2), OcclusionParams(square_px=300))
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        analyse_invariance(sets, "first", ImageParams(), QUICK.model_copy(update={"layer": "layer9"}))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture at all")
    (tmp_path / "bad" / "b.png").write_bytes(b"neither")
    with pytest.raises(ValueError, match=r"a\.png"):
        analyse_invariance(sets, "first", ImageParams(folder=str(tmp_path / "bad")), QUICK)


def test_masks_that_do_not_fit_their_images_are_all_told(sets, tmp_path):
    gray, mask = _striped(1)
    bad = {"images/a.png": gray, "images/b.png": gray, "masks/b.png": mask, "masks/c.png": mask}
    with pytest.raises(ValueError, match=r"images/a\.png has no mask.*masks/c\.png has no image"):
        plan_masked(sets, MaskedParams(folder=pictures(tmp_path / "unpaired", bad)))
    wrong = {
        "images/a1.png": gray, "masks/a1.png": mask[:-1],
        "images/a2.png": gray, "masks/a2.png": gray,
        "images/a3.png": gray, "masks/a3.png": np.zeros_like(mask),
    }  # fmt: skip
    params = MaskedParams(folder=pictures(tmp_path / "wrong", wrong))
    with pytest.raises(
        ValueError, match=r"3 picture.*63 x 96 px, its image 64 x 96.*gray value\(s\), expected two.*1 gray value"
    ):
        analyse_organelles(sets, "first", params, MaskParams(), "cpu")
    with pytest.raises(ValueError, match="no pictures in images/"):
        plan_masked(sets, MaskedParams(folder=pictures(tmp_path / "plain", {"a.png": gray})))
    nested = {"images/x.png": gray, "images/y.png": gray, "masks/golgi/x.png": mask, "masks/er/y.png": mask}
    plan = plan_masked(sets, MaskedParams(folder=pictures(tmp_path / "nested", nested)))
    assert {name: len(pairs) for name, pairs in plan.organelles.items()} == {"er": 1, "golgi": 1}
    with pytest.raises(FileNotFoundError, match="analyses/inbox/organelles"):
        plan_masked(sets, MaskedParams())


def test_only_results_of_one_setting_are_set_side_by_side(sets):
    images = ImageParams(datasets=["coarse", "fine"], num_images=4)
    params = FrechetParams(num_bootstrap=0)
    one = measure_datasets(sets, "first", images, params, "cpu").manifest
    other = measure_datasets(sets, "noise", images, params.model_copy(update={"shrinkage": "none"}), "cpu").manifest
    settings = [manifest.inputs.partition.split("/")[1] for manifest in (one, other)]
    assert settings[0] != settings[1]
    assert compare_weights(sets, "frechet").manifest.inputs.partition == f"frechet/{settings[1]}", "the newest"
    chosen = compare_weights(sets, "frechet", settings[0]).manifest
    assert chosen.inputs.parameters == {"weights": ["first"]}
    with pytest.raises(FileNotFoundError, match=f"no result of noise with setting '{settings[0]}'"):
        compare_weights(sets, "frechet", settings[0], ["first", "noise"])
    with pytest.raises(FileNotFoundError, match="no result of any weights"):
        compare_weights(sets, "umap")
    with pytest.raises(ValueError, match="expected one of invariance"):
        compare_weights(sets, "astrology")
    assert len(results_of(sets, DATASET_DISTANCES, "first")) == 1
    numbers = json.loads(sets.read(f"{one.folder}/numbers.json"))
    assert numbers["distance_coarse__fine"] == one.details["numbers"]["distance_coarse__fine"] > 0
