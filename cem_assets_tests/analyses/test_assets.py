"""Analyses in Dagster and at the command line: figures, checks, comparisons, and failures in words."""

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from cem_assets.analyses import results as analysis_results
from cem_assets.cli.main import main
from cem_assets.cli.runs import failures, run_job
from cem_assets.store.assets import COMPARISONS, INVARIANCE, OCCLUSION, ORGANELLES
from cem_assets.store.manifests import committed_partitions
from cem_assets_tests.benchmarks.benchmark_sets import put_weights
from cem_assets_tests.platform.test_materializing import metadata_of, picture_of
from cem_assets_tests.pretraining.training_sets import put_filtered, textures


@pytest.fixture(autouse=True)
def _untracked(monkeypatch):
    """Switch MLflow off, because the tests of the stages cover it."""
    monkeypatch.setattr(analysis_results, "track", lambda *_: None)
    monkeypatch.setattr("cem_assets.analyses.comparisons.stage.track", lambda *_: None)


@pytest.fixture
def store(local_store):
    for seed, name in enumerate(("first", "second")):
        put_weights(local_store, name, seed=seed, arch="efficientnet_b0")
    put_filtered(local_store, "fine", textures(12.0, 6, 0))
    return local_store


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_config_reaches_its_stage_and_figures_are_shown(store, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[8:30, 20:50] = 255
    for folder, pixels in (("images", mask // 2 + np.arange(64, dtype=np.uint8)), ("masks", mask)):
        (tmp_path / "cells" / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "cells" / folder / "er1.png")
    quick = {"datasets": ["fine"], "num_images": 3, "device": "cpu"}
    configs = {
        INVARIANCE: {**quick, "global_rate": 0.4, "strengths": {"blur": [0.0, 1.5]}},
        OCCLUSION: {**quick, "square_px": 112, "stride_px": 112, "fill": "black"},
        ORGANELLES: {"folder": str(tmp_path / "cells"), "num_channels": 3, "top_share": 0.1, "device": "cpu"},
    }
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_job(instance, store.url, "analyses", list(configs), "first", configs)
        assert result.success, failures(result)
        for asset, figure in ((INVARIANCE, "firing_rates"), (OCCLUSION, "occlusion"), (ORGANELLES, "organelle-00-er")):
            shown = metadata_of(result, asset)
            assert picture_of(shown[figure]).size[0] > 100
        assert metadata_of(result, INVARIANCE)["mean_rate_blur"].value <= 1
        assert {check.check_name for check in result.get_asset_check_evaluations()} == {"analyses_are_whole"}
        assert all(check.passed for check in result.get_asset_check_evaluations())
        again = run_job(instance, store.url, "analyses", [OCCLUSION], "first", {OCCLUSION: configs[OCCLUSION]})
        assert "up to date" in metadata_of(again, OCCLUSION)["outcome"].value
        compared = run_job(instance, store.url, "analysis_comparison", config={COMPARISONS: {"analysis": "occlusion"}})
        assert compared.success and picture_of(metadata_of(compared, COMPARISONS)["comparison"]).size[0] > 100
        for config in ({"datasets": ["fine"], "global_rate": 0.9}, {"datasets": ["fine"], "strengths": {"shear": [1.0]}}):
            assert not run_job(instance, store.url, "analyses", [INVARIANCE], "first", {INVARIANCE: config}).success
        refused = run_job(instance, store.url, "analyses", [INVARIANCE], "nobody", {INVARIANCE: quick})
        assert "weights 'nobody' are not known" in failures(refused)[0]


def test_the_command_analyses_several_weights_and_says_where_figures_lie(store, monkeypatch, capsys):
    monkeypatch.setenv("CEM_ASSETS_ROOT", store.url)
    words = ["--dataset", "fine", "--images", "2", "--set", "square_px=112", "--set", "stride_px=112", "--device", "cpu"]
    assert main(["analyse", "occlusion", "first", "second", *words]) == 0
    told = capsys.readouterr().out
    assert "first (new): Drop of cosine similarity" in told and "largest_drop" in told and "second (new)" in told
    (setting,) = committed_partitions(store, f"{COMPARISONS}/occlusion")
    assert f"side by side: {store.url}/{COMPARISONS}/occlusion/{setting}/" in told
    assert main(["analyse"]) == 0 and "side by side" in capsys.readouterr().out
    assert main(["analyse", "occlusion", "first", "nobody", *words]) == 1
    assert "weights 'nobody' are not known" in capsys.readouterr().err
    assert main(["analyse", "occlusion", "first", "--dataset", "none"]) == 1
    assert "Committed partitions: fine" in capsys.readouterr().err
