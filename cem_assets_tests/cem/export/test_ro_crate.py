"""RO-Crate 1.1: the descriptor, the root and the flat graph that its specification requires.

The format's own validator is not among the dependencies; its documented rules stand here.
"""

import re
from typing import Any

import pytest

from cem_assets.cem.export.ro_crate import ro_crate_metadata
from cem_assets_tests.cem.export.test_croissant import FORMS, dataset, files_of, release

REQUIRED = {
    "ro-crate-metadata.json": {"@type": "CreativeWork", "about": {"@id": "./"}, "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"}},
    "./": {"@type": "Dataset", "name": str, "description": str, "datePublished": str, "license": list, "hasPart": list},
}  # fmt: skip
"""The values that the descriptor must have, and the properties of the root with their kinds."""


def graph_of(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert set(data) == {"@context", "@graph"} and data["@context"] == "https://w3id.org/ro/crate/1.1/context"
    found = {item["@id"]: item for item in data["@graph"]}
    assert len(found) == len(data["@graph"]), "every entity stands in the graph once"
    return found


@pytest.mark.parametrize("form", FORMS)
def test_descriptor_and_root_have_what_the_specification_requires(form):
    graph = graph_of(ro_crate_metadata(release(dataset("vnc"), dataset("mito", "ask us")), form, files_of(form)))
    for name, wanted in REQUIRED.items():
        for key, value in wanted.items():
            found = graph[name][key]
            assert (isinstance(found, value) and found) if isinstance(value, type) else found == value, (name, key)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", graph["./"]["datePublished"])
    assert "author" not in graph["./"] and "not recorded by name" in graph["./"]["creditText"]


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_flat_and_every_reference_resolves(form):
    data = ro_crate_metadata(release(dataset("vnc"), dataset("mito", source_url="https://x.org/a")), form, files_of(form))
    graph = graph_of(data)
    for item in graph.values():
        assert item["@type"] and (item["@id"] == "ro-crate-metadata.json" or item["name"])
        for key, value in item.items():
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    assert set(part) == {"@id"}, (item["@id"], key)
                    assert part["@id"] in graph or (key, part["@id"]) == ("conformsTo", "https://w3id.org/ro/crate/1.1")
    for part in graph["./"]["hasPart"]:
        kind = graph[part["@id"]]["@type"]
        assert kind in ("File", "Dataset") and (kind == "Dataset") == part["@id"].endswith("/")
        assert re.fullmatch(r"[A-Za-z0-9_.~-]+(/[A-Za-z0-9_.~-]+)*/?", part["@id"]), "relative, and needs no escape"


@pytest.mark.parametrize(("form", "place"), [("tiff-tree", "vnc/"), ("hf", "data/vnc/"), ("webdataset", "#dataset-vnc")])
def test_each_dataset_has_its_own_licence_citation_and_source(form, place):
    facts = release(dataset("vnc", "CC BY 4.0", source_url="https://x.org/a", organism="fly"), dataset("w", "ask us"))
    graph = graph_of(ro_crate_metadata(facts, form, files_of(form)))
    member = graph[place]
    assert graph[member["license"]["@id"]]["name"] == "CC BY 4.0" and member["isBasedOn"] == "https://x.org/a"
    assert graph[member["citation"]["@id"]]["name"] == "vnc, 2026" and "(fly)" in member["description"]
    other = graph[place.replace("vnc", "w")]
    assert graph[other["license"]["@id"]]["name"] == "ask us" and other["license"]["@id"].startswith("#licence-")


def test_a_source_that_is_no_address_stays_words():
    graph = graph_of(ro_crate_metadata(release(dataset("vnc", source_url="javascript:x y")), "hf", []))
    assert "isBasedOn" not in graph["data/vnc/"] and "Source: javascript:x y" in graph["data/vnc/"]["description"]


def test_one_licence_in_two_spellings_is_one_entity():
    graph = graph_of(ro_crate_metadata(release(dataset("a", "CC BY 4.0"), dataset("b", "CC-BY-4.0")), "hf", []))
    assert graph["./"]["license"] == [{"@id": "https://spdx.org/licenses/CC-BY-4.0"}]
    assert graph["https://spdx.org/licenses/CC-BY-4.0"]["name"] == "CC BY 4.0 / CC-BY-4.0"
