"""Rows of weights: those of this package, and the error that names all problems of wrong ones."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.catalog.weights import (
    ARCHS,
    METHODS,
    PRESETS,
    ImportedWeights,
    TrainedWeights,
    weights_rows,
)

TRAINED = {
    "kind": "trained",
    "title": "a title",
    "method": "moco",
    "preset": "smoke",
    "arch": "resnet18",
    "dataset": "cem",
}
FILE = {
    "kind": "imported",
    "title": "a title",
    "source": "file",
    "method": "moco",
    "arch": "resnet18",
    "file": "published.pth.tar",
    "url": "https://example.org/published.pth.tar",
    "licence": "CC-BY-4.0",
    "data_licence": "CC0-1.0",
    "trained_on": "patches",
    "citation": "Somebody (2020).",
}
RANDOM = {"kind": "imported", "title": "a title", "source": "random", "method": "random", "arch": "resnet18"}


def toml(name: str, values: dict) -> str:
    def text(value):
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {text(item)}" for key, item in value.items()) + " }"
        return str(value).lower() if isinstance(value, bool) else repr(value)

    return f'["{name}"]\n' + "".join(f"{key} = {text(value)}\n" for key, value in values.items())


def test_the_shipped_rows_are_the_published_ones_and_ours():
    rows = weights_rows()
    assert {name for name, row in rows.items() if isinstance(row, ImportedWeights)} == {
        "random_resnet50",
        "random_efficientnet_b0",
        "imagenet_resnet50",
        "imagenet_resnet50_v2",
        "imagenet_efficientnet_b0",
        "imagenet_mocov2",
        "cem500k_mocov2",
        "cem1.5m_swav",
    }
    trained = {name: (row.method, row.preset, row.arch) for name, row in rows.items() if isinstance(row, TrainedWeights)}
    assert trained["cem_mocov2"] == ("moco", "paper", "resnet50") and trained["cem_swav"] == ("swav", "paper", "resnet50")
    assert trained["cytoimagenet_efficientnet_b0"] == ("supervised", "paper", "efficientnet_b0")
    assert {row.subset for row in rows.values() if isinstance(row, TrainedWeights)} == {"", "toy_20", "toy_50"}
    assert all(rows[name].name == name for name in rows)


def test_torchvisions_rows_are_torchvisions_own_files():
    from torchvision.models import EfficientNet_B0_Weights, ResNet50_Weights

    own = {
        "imagenet_resnet50": ResNet50_Weights.IMAGENET1K_V1,
        "imagenet_resnet50_v2": ResNet50_Weights.IMAGENET1K_V2,
        "imagenet_efficientnet_b0": EfficientNet_B0_Weights.IMAGENET1K_V1,
    }
    rows = weights_rows()
    for name, member in own.items():
        row = rows[name]
        assert row.url == member.url and row.url.endswith(f"/{row.file}")
        assert row.file.endswith(f"-{row.sha256}.pth"), "the digits are those of the file's name"


def test_imagenets_norms_are_those_that_stand_for_three_channels():
    found = {(row.mean, row.std) for name, row in weights_rows().items() if name.startswith("imagenet_")}
    assert found == {(0.449, 0.226)}


def test_names_written_out_here_are_those_of_the_other_rooms():
    from cem_assets.encoders import ENCODERS
    from cem_assets.pretraining.methods.params import PARAMS
    from cem_assets.pretraining.methods.presets import PRESETS as NUMBERS

    assert sorted(ENCODERS) == list(ARCHS) and sorted(PARAMS) == list(METHODS)
    assert all(set(presets) == set(PRESETS) for presets in NUMBERS.values())


def test_the_catalogue_is_read_without_torch():
    code = "import sys, cem_assets.catalog.weights as w; w.weights_rows(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_row_of_every_kind_is_read():
    text = (
        toml("a", TRAINED | {"release": "v3", "params": {"epochs": 2, "lr": 0.1}})
        + toml("b", FILE | {"sha256": "0123abcd", "mean": 0.5, "std": 1})
        + toml("c.1", RANDOM | {"seed": 7})
    )
    a, b, c = weights_rows(text).values()
    assert a == TrainedWeights("a", "a title", "moco", "smoke", "resnet18", "cem", "v3", "", {"epochs": 2, "lr": 0.1})
    assert (b.sha256, b.mean, b.std, b.file) == ("0123abcd", 0.5, 1, "published.pth.tar")
    assert (c.name, c.seed, c.source, c.mean) == ("c.1", 7, "random", None)


def test_every_problem_of_every_row_is_told_at_once():
    text = (
        toml("A b", TRAINED)
        + toml("two", TRAINED | {"arch": "vgg", "epochs": 3})
        + toml("three", FILE | {"sha256": "xyz"})
        + toml("five", TRAINED | {"kind": "stolen"})
    )
    with pytest.raises(ValueError, match="has 5 problem") as error:
        weights_rows(text, "mine.toml")
    told = str(error.value)
    assert told.startswith("mine.toml")
    for part in (
        "A b: a name has",
        "two: arch is 'vgg'; expected one of",
        "two: unknown key 'epochs'",
        "three: sha256 is 'xyz'",
    ):
        assert part in told
    assert "five: kind is 'stolen'; expected one of trained, imported" in told


@pytest.mark.parametrize(
    ("base", "change", "told"),
    [
        (TRAINED, {"release": "../x"}, "release is"),
        (TRAINED, {"release": "V 3"}, "release is"),
        (TRAINED, {"subset": "toy_20"}, "only cytoimagenet has subsets"),
        (TRAINED, {"subset": "toy_30"}, "subset is 'toy_30'"),
        (TRAINED, {"method": "supervised"}, "needs classes"),
        (TRAINED, {"preset": "large"}, "preset is 'large'"),
        (TRAINED, {"params": "epochs"}, "params is 'epochs'; expected a table"),
        (TRAINED, {"title": " "}, "title is empty"),
        (TRAINED, {"title": 3}, "title is 3; expected a text"),
        (FILE, {"file": "../../etc/passwd"}, "expected a plain file name"),
        (FILE, {"file": "a/b.pth"}, "expected a plain file name"),
        (FILE, {"file": ".hidden"}, "expected a plain file name"),
        (FILE, {"file": ""}, "file is missing"),
        (FILE, {"url": "ftp://example.org/x"}, "url is"),
        (FILE, {"url": "https://user:secret@example.org/x"}, "url is"),
        (FILE, {"url": "file:///etc/passwd"}, "url is"),
        (FILE, {"url": "http://example.org/x", "sha256": "0123abcd"}, "not https"),
        (FILE, {"sha256": "0123abc"}, "sha256 is"),
        (FILE, {"sha256": "0" * 65}, "sha256 is"),
        (FILE, {"sha256": "ABCDEF01"}, "sha256 is"),
        (FILE, {"mean": 0.5}, "come together"),
        (FILE, {"mean": 0.5, "std": 0.0}, "not of pixels"),
        (FILE, {"mean": 127, "std": 30}, "not of pixels"),
        (FILE, {"mean": True, "std": 0.5}, "mean is True; expected a number"),
        (FILE, {"method": "random"}, "expected how the weights were trained"),
        (FILE, {"licence": ""}, "licence is missing"),
        (FILE, {"data_licence": ""}, "data_licence is missing"),
        (FILE, {"citation": ""}, "citation is missing"),
        (FILE, {"seed": 1}, "seed is of random weights alone"),
        (RANDOM, {"seed": -1}, "seed is -1"),
        (RANDOM, {"seed": 1.5}, "seed is 1.5; expected a whole number"),
        (RANDOM, {"method": "moco"}, "expected 'random'"),
        (RANDOM, {"url": "https://example.org/x"}, "url says nothing of random weights"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(base, change, told):
    weights_rows(toml("row", base))
    with pytest.raises(ValueError, match="weights.toml has [12] problem") as error:
        weights_rows(toml("row", base | change))
    assert f"row: {told}" in str(error.value) or told in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a..b", "-a", "_runs", "a" * 65, "ä", "a b", "A"])
def test_names_that_are_no_partition_are_refused(name):
    with pytest.raises(ValueError, match="a name has 1 to 64"):
        weights_rows(toml(name, TRAINED))


def test_a_name_with_a_dot_and_no_quotes_is_explained():
    with pytest.raises(ValueError, match="written in quotes"):
        weights_rows(toml("cem1.5m", TRAINED).replace('"', ""))


@pytest.mark.parametrize("text", ["[a", "a = ", "x = " + "[" * 100_000])
def test_what_is_no_toml_is_told_with_an_example(text):
    with pytest.raises(ValueError, match="weights.toml is not valid TOML") as error:
        weights_rows(text)
    weights_rows(str(error.value).split("An example of a row:\n")[1])


@given(
    st.dictionaries(
        st.sampled_from(sorted({*TRAINED, *FILE, "seed", "mean", "std", "x"})), st.sampled_from([1, "", "moco", True, 0.5])
    )
)
def test_any_change_of_a_row_gives_rows_or_a_told_problem(change):
    for base in (TRAINED, FILE, RANDOM):
        try:
            rows = weights_rows(toml("row", base | change))
        except ValueError as error:
            assert "row: " in str(error)
        else:
            assert list(rows) == ["row"]
