"""Every script of `examples/` runs on a small store, offline, and what it says is true."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cem_assets import environment, readers
from cem_assets.cem.export.export import FORMS, export_cem
from cem_assets.cem.releases.stage import make_release
from cem_assets.pretraining.weights.importing import import_weights
from cem_assets.pretraining.weights.stored import WEIGHT_FILES
from cem_assets.store.store import Store, open_store
from cem_assets_tests.pretraining.published_weights import moco, network, row
from cem_assets_tests.pretraining.training_sets import texture_release
from cem_assets_tests.services.stack import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def textured(tmp_path_factory) -> Store:
    """A store with a release of textures and imported weights; read only."""
    store = open_store(str(tmp_path_factory.mktemp("examples") / "store"))
    texture_release(store, {"coarse": 12, "fine": 12})
    store.put(f"{WEIGHT_FILES}/published.pth.tar", moco(network()))
    import_weights(store, row(arch="resnet18", method="moco"))
    return store


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script as `python examples/NAME ...` does, in this process; return what it printed."""

    def run(name: str, store: Store, *arguments: str) -> str:
        monkeypatch.setenv("CEM_ASSETS_ROOT", store.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.delenv(environment.WEIGHTS_FOLDER.name, raising=False)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_script_is_listed_and_tested():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)", (EXAMPLES / "README.md").read_text())) == scripts
    assert all(name in Path(__file__).read_text() for name in scripts)


def test_a_release_in_pytorch(textured: Store, run):
    out = run("load_in_pytorch.py", textured)
    assert "batch (24, 1, 224, 224)" in out and "24 of 24 patches of v1" in out
    assert abs(float(re.search(r"mean ([+-][\d.]+)", out).group(1))) < 0.01, "normalised by the release's own norms"


def test_a_release_in_hf_datasets(textured: Store, run):
    out = run("load_in_hf_datasets.py", textured)
    assert "24 patches, columns dataset, name" in out and "(224, 224) in mode L" in out


def test_a_release_in_duckdb(textured: Store, run):
    lines = run("query_in_duckdb.py", textured).splitlines()
    assert [line.split()[:2] for line in lines] == [["coarse", "12"], ["fine", "12"]] and "0.95 informative" in lines[0]


@pytest.mark.parametrize("form", FORMS)
def test_an_export_is_read_back_by_a_plain_script(textured: Store, tmp_path, form):
    folder = tmp_path / "out"
    export_cem(textured, str(folder), form=form)
    script = EXAMPLES / "read_export.py"
    assert "cem_assets" not in re.sub(r'""".*?"""', "", script.read_text(), flags=re.DOTALL), "none of our code"
    call = [sys.executable, "-I", str(script), str(folder)]
    out = subprocess.run(call, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    images = [image for _, image in readers.read_release(root=textured.url).iter_images()]
    assert f"v1 as {form}" in out and f"{len(images)} patches, sum of pixels {sum(int(i.sum()) for i in images)}" in out
    (victim,) = sorted(folder.glob("README.md"))
    victim.write_bytes(victim.read_bytes() + b" ")
    damaged = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert damaged.returncode == 1 and "README.md is damaged" in damaged.stderr


def test_weights_under_a_linear_classifier(textured: Store, run):
    out = run("classify_with_weights.py", textured, "published")
    assert "24 patches of 2 datasets, 512 features" in out
    assert float(re.search(r"accuracy ([\d.]+)", out).group(1)) > 0.8, "coarse and fine textures are told apart"


def test_weights_in_a_unet(textured: Store, run):
    first, last = map(
        float, re.search(r"loss ([\d.]+) > ([\d.]+)", run("segment_with_unet.py", textured, "published")).groups()
    )
    assert last < 0.9 * first


def test_adding_a_dataset(local_store: Store, run):
    from cem_assets_tests.cem.chain import run_stage

    assert "mine lies in" in run("add_dataset.py", local_store, "mine")
    run_stage(local_store, "mine", "volumes")
    assert readers.open_volume("mine", root=local_store.url).shape == (70, 230, 240)


def test_adding_a_benchmark(local_store: Store, run):
    for _ in range(2):  # a second time changes nothing
        assert re.search(r"my_benchmark is prepared: .*\d", run("add_benchmark.py", local_store))


def test_adding_a_method(curated_local: Store, run):
    out = run("add_method.py", curated_local, "cells")
    both = [int(number) for number in re.search(r"keep (\d+), both drop (\d+)", out).groups()]
    alone = [int(number) for number in re.search(r"keeps (\d+), contrast alone (\d+)", out).groups()]
    scores = readers.read_patches("cells", "scores", curated_local.url)["informative"] > 0.5
    flat = [image.std() < 12 for _, image in readers.iter_images("cells", "scores", curated_local.url)]
    assert both[1] + alone[1] == int((~scores).sum()) and both[1] + alone[0] == int(np.sum(flat))
    assert make_release(curated_local).manifest.counts["patches"] > 0
