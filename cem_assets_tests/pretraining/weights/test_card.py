"""The model card: it names every licence, its text is safe, and its code for loading runs."""

import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.catalog.weights import ARCHS
from cem_assets.pretraining.weights.card import DataSource, WeightsFacts, is_non_commercial, weights_card
from cem_assets.pretraining.weights.export import to_safetensors, weights_of

FACTS = WeightsFacts(
    "mine", "My weights", "resnet18", "swav", "Trained on release v3.", (0.5, 0.125), 12, ("summed",), "", "ab12"
)
DATA = (
    DataSource("vnc", "CC-BY-4.0", "Gerhard et al. (2013)", "https://example.org/vnc", 1200),
    DataSource("retina", "CC-BY-NC-SA-4.0", "Somebody (2020)"),
    DataSource("lab", ""),
)


def test_a_card_tells_what_how_from_what_and_how_well():
    card = weights_card(FACTS, DATA, {"epochs": 12, "crops": [{"num": 2}]}, {"knn": 0.8125}, "cem/releases/v3", "d" * 64)
    assert card.startswith("---\nlicense: other\n") and card.endswith("\n")
    for part in (
        "# mine",
        "My weights",
        "Epochs: 12",
        "mean 0.5, standard deviation 0.125",
        "Note: summed",
        "`ab12`",
        "| epochs | 12 |",
        '| crops | [{"num": 2}] |',
        "| knn | 0.8125 |",
        "Release cem/releases/v3, digest `" + "d" * 64,
        "| vnc | 1,200 | CC-BY-4.0 | Gerhard et al. (2013) | https://example.org/vnc |",
        'readers.load_weights("mine")',
        "(images / 255 - 0.5) / 0.125",
    ):
        assert part in card, part


def test_every_licence_is_named_and_restrictions_are_told():
    card = weights_card(FACTS, DATA)
    assert "Data under CC-BY-4.0: vnc" in card and "Data under CC-BY-NC-SA-4.0: retina" in card
    assert "**Commercial use is excluded** by the terms of retina." in card
    assert "**No licence is stated** for lab" in card
    free = weights_card(FACTS, DATA[:1])
    assert "Commercial use" not in free and "No licence is stated" not in free


def test_the_licence_of_the_weights_restricts_too():
    facts = WeightsFacts("a", "t", "resnet50", "moco", "Imported.", licence="CC-BY-NC-4.0")
    assert "excluded** by the terms of the weights (CC-BY-NC-4.0)." in weights_card(facts, DATA[:1])


def test_random_weights_have_no_data():
    facts = WeightsFacts("chance", "Random", "resnet18", "random", "Not trained.")
    card = weights_card(facts, ())
    assert "## Data\n\nNone." in card and "No data is in these weights" in card and "Pixel norms: not known" in card


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-NC-4.0", True),
        ("cc_by_nc_sa", True),
        ("CC BY-NC-ND 3.0", True),
        ("Non-commercial research and education", True),
        ("noncommercial", True),
        ("for research use only", True),
        ("Research only", True),
        ("CC-BY-4.0", False),
        ("CC0-1.0", False),
        ("BSD-3-Clause", False),
        ("Licence of the NCI, public domain", False),
        ("ncbi", False),
        ("", False),
    ],
)
def test_terms_that_exclude_commercial_use_are_recognised(licence, expected):
    assert is_non_commercial(licence) is expected


@pytest.mark.parametrize("arch", ARCHS)
def test_the_code_for_loading_without_this_package_runs(arch, tmp_path):
    from cem_assets.encoders import build_encoder

    torch.manual_seed(0)
    encoder = build_encoder(arch, in_channels=1).eval()
    (tmp_path / "weights.safetensors").write_bytes(to_safetensors(weights_of(encoder, arch)))
    card = weights_card(WeightsFacts("a", "t", arch, "moco", "x"), DATA)
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "cem_assets" not in code
    names: dict = {}
    exec(code.replace('"weights.safetensors"', repr(str(tmp_path / "weights.safetensors"))), names)
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(names["model"](images), encoder(images))


def test_an_architecture_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="encoder 'vgg' is not known"):
        weights_card(WeightsFacts("a", "t", "vgg", "moco", "x"), ())


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_other_peoples_text_cannot_break_tables_or_bring_html(name, licence, citation):
    card = weights_card(FACTS, (DataSource(name, licence, citation),))
    row = card.split("|---|---:|---|---|---|\n")[1].split("\n")[0]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 6
    assert "<" not in card.replace("<class", "") and card.count("\n## ") == 4


def test_a_card_is_written_without_torch():
    code = "import sys, cem_assets.pretraining.weights.card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
