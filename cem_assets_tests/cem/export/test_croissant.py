"""Croissant 1.0: the fields that its specification requires, references that resolve, and unknown creators.

The format's own validator is not among the dependencies; its documented rules stand here as tables.
"""

import json
import re
from typing import Any

import pytest

from cem_assets.cem.export.croissant import croissant_metadata, semantic_version
from cem_assets.cem.export.facts import DatasetFacts, ExportedFile, ReleaseFacts

FORMS = ("tiff-tree", "webdataset", "hf")
REQUIRED = {
    "sc:Dataset": (
        "@context", "conformsTo", "description", "license", "name", "url", "creator", "datePublished", "distribution",
        "version",
    ),
    "cr:FileObject": ("@id", "name", "contentUrl", "contentSize", "encodingFormat", "sha256"),
    "cr:FileSet": ("@id", "name", "encodingFormat", "includes"),
    "cr:RecordSet": ("@id", "name", "field"),
    "cr:Field": ("@id", "name", "dataType", "source"),
}  # fmt: skip
"""What the specification requires for each class, and what it recommends for archives that have checksums."""
DATA_TYPES = {"sc:Text", "sc:Integer", "sc:Float", "sc:Boolean", "sc:Date", "sc:URL", "sc:ImageObject"}
FILE_PROPERTIES = {"fullpath", "filename", "content", "lines", "lineNumbers"}


def dataset(name: str, licence: str = "CC BY 4.0", **more: Any) -> DatasetFacts:
    words = {"source_url": "", "organism": "", "tissue": "", "technique": "", "num_patches": 5, "num_excluded": 0}
    return DatasetFacts(
        **{"name": name, "folder": name, "licence": licence, "citation": f"{name}, 2026", "digest": "d" * 64, **words, **more}
    )


def release(*datasets: DatasetFacts) -> ReleaseFacts:
    return ReleaseFacts("v3", "a" * 64, "2026-05-04", sum(d.num_patches for d in datasets), 0.5, 0.1, datasets)


def files_of(form: str) -> list[ExportedFile]:
    shards = {"tiff-tree": [], "webdataset": ["patches-000000.tar"], "hf": ["data/vnc/part-00000.parquet"]}[form]
    tables = ["datasets.csv", *(["metadata.csv"] if form != "hf" else [])]
    return [ExportedFile(path, 10 + n, f"{n:064x}") for n, path in enumerate([*shards, *tables])]


def objects(value: Any) -> list[dict[str, Any]]:
    """Yield every JSON object below a value, except for the context."""
    if isinstance(value, list):
        return [found for item in value for found in objects(item)]
    if not isinstance(value, dict):
        return []
    return [value, *(found for key, item in value.items() if key != "@context" for found in objects(item))]


@pytest.mark.parametrize("form", FORMS)
def test_every_class_has_what_the_specification_requires(form):
    data = croissant_metadata(release(dataset("vnc"), dataset("mito")), form, files_of(form))
    assert data["conformsTo"] == "http://mlcommons.org/croissant/1.0" and data["@type"] == "sc:Dataset"
    kinds = []
    for item in objects(data):
        kind = item.get("@type")
        for key in REQUIRED.get(kind, ()):
            assert item.get(key) not in (None, "", []), (kind, item.get("@id"), key)
        kinds.append(kind)
    assert set(REQUIRED) <= set(kinds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", data["datePublished"]) and re.fullmatch(r"\d+\.\d+\.\d+", data["version"])
    for item in objects(data):
        if item.get("@type") == "cr:FileObject":
            assert re.fullmatch(r"[0-9a-f]{64}", item["sha256"]) and re.fullmatch(r"\d+ B", item["contentSize"])
        if item.get("@type") == "cr:Field":
            extract = item["source"]["extract"]
            assert item["dataType"] in DATA_TYPES and len({"fileObject", "fileSet"} & set(item["source"])) == 1
            assert "column" in extract or extract["fileProperty"] in FILE_PROPERTIES


@pytest.mark.parametrize("form", FORMS)
def test_identifiers_are_unique_prefixed_and_every_reference_resolves(form):
    data = croissant_metadata(release(dataset("vnc")), form, files_of(form))
    defined = [item["@id"] for item in objects(data) if "@type" in item and "@id" in item]
    assert len(defined) == len(set(defined))
    references = [item["@id"] for item in objects(data) if set(item) == {"@id"}]
    assert references and set(references) <= set(defined)
    for records in data["recordSet"]:
        assert all(field["@id"] == f"{records['@id']}/{field['name']}" for field in records["field"])
    assert "@id" not in data


@pytest.mark.parametrize("form", FORMS)
def test_short_names_are_all_in_the_context(form):
    data = croissant_metadata(release(dataset("vnc")), form, files_of(form))
    from_croissant = {
        "citeAs", "column", "conformsTo", "dataType", "extract", "field", "fileObject", "fileProperty", "fileSet", "includes",
        "isLiveDataset", "jsonPath", "key", "recordSet", "references", "source", "transform",
    }  # fmt: skip
    used = {key for item in objects(data) for key in item} & from_croissant
    assert used <= set(data["@context"]) and {"recordSet", "field", "source", "extract"} <= used
    assert all(str(data["@context"][key]).startswith(("cr:", "dct:")) or "@id" in data["@context"][key] for key in used)


def test_licences_are_pages_where_spdx_knows_them_and_words_where_not():
    facts = release(dataset("a", "CC BY 4.0"), dataset("b", "cc-by-4.0"), dataset("c", "ask us"))
    data = croissant_metadata(facts, "hf", [])
    assert data["license"] == ["https://spdx.org/licenses/CC-BY-4.0", {"@type": "CreativeWork", "name": "ask us"}]
    assert [(item["name"], item["text"]) for item in data["citation"]] == [(n, f"{n}, 2026") for n in "abc"]
    assert "a, 2026" in data["citeAs"] and "doi:10.7554/eLife.65894" in data["citeAs"]
    (creator,) = data["creator"]
    assert "not recorded by name" in creator["name"]


def test_the_images_of_tars_are_contained_in_them_all():
    files = [ExportedFile(f"patches-{n:06d}.tar", 1, "0" * 64) for n in range(3)]
    data = croissant_metadata(release(dataset("vnc")), "webdataset", files)
    (images,) = [item for item in data["distribution"] if item["@type"] == "cr:FileSet"]
    assert images["containedIn"] == [{"@id": item.path} for item in files]


def test_equal_facts_give_equal_text():
    texts = {json.dumps(croissant_metadata(release(dataset("vnc")), "hf", files_of("hf"))) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("version", "expected"), [("v1", "1.0.0"), ("v12", "12.0.0"), ("1", "1"), ("vnext", "vnext"), ("v²", "v²")]
)
def test_counted_versions_become_semantic_ones(version, expected):
    assert semantic_version(version) == expected
