"""A release as an RO-Crate 1.1: `ro-crate-metadata.json`, which describes a folder as a research object.

This follows the specification (https://w3id.org/ro/crate/1.1). `cem_assets.cem.export.export` writes the files that are
described.
"""

from collections.abc import Sequence
from typing import Any

from cem_assets.cem.export.facts import (
    METHOD_CITATION,
    UNKNOWN_AUTHORS,
    DatasetFacts,
    ExportedFile,
    ReleaseFacts,
    licence_url,
    media_type,
)

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
PROFILE = "https://w3id.org/ro/crate/1.1"
METADATA_FILE = "ro-crate-metadata.json"

_METHOD_URL = "https://doi.org/10.7554/eLife.65894"


def ro_crate_metadata(release: ReleaseFacts, form: str, files: Sequence[ExportedFile]) -> dict[str, Any]:
    """Describe an export of a release.

    Args:
        form: "tiff-tree", "webdataset" or "hf".
        files: The files that are described one by one. For the images of a tree, only the folder of their dataset is
            described, and `metadata.csv` lists each of them.

    Returns:
        JSON-LD with a flat `@graph`; equal facts give an equal dict. A store does not record authors, so none are named, and
        the `creditText` of the root says where to find them.
    """
    licences = release.licences()
    has_folders = form != "webdataset"  # in tars, datasets have no folders that could be described
    members = [_member(item, form, licences) for item in release.datasets]
    root: dict[str, Any] = {
        "@id": "./",
        "@type": "Dataset",
        "name": release.title,
        "description": release.summary,
        "version": release.version,
        "identifier": f"sha256:{release.digest}",
        "datePublished": release.published,
        "license": [{"@id": name} for name in dict.fromkeys(_licence_id(text, licences) for text in licences)],
        "creditText": UNKNOWN_AUTHORS,
        "citation": [*({"@id": f"#citation-{item.folder}"} for item in release.datasets), {"@id": _METHOD_URL}],
        "hasPart": [
            *({"@id": item.path} for item in files),
            *({"@id": item["@id"]} for item in members if has_folders),
        ],
    }
    if not has_folders:
        root["mentions"] = [{"@id": item["@id"]} for item in members]
    descriptor = {
        "@id": METADATA_FILE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": PROFILE},
        "about": {"@id": "./"},
    }
    graph = [
        descriptor,
        root,
        *(_file(item) for item in files),
        *members,
        *_licences(licences),
        *({"@id": f"#citation-{d.folder}", "@type": "CreativeWork", "name": d.citation} for d in release.datasets),
        {"@id": _METHOD_URL, "@type": "ScholarlyArticle", "name": METHOD_CITATION},
    ]
    return {"@context": CONTEXT, "@graph": graph}


def _file(item: ExportedFile) -> dict[str, Any]:
    return {
        "@id": item.path,
        "@type": "File",
        "name": item.path,
        "encodingFormat": media_type(item.path),
        "contentSize": str(item.num_bytes),
        "sha256": item.sha256,
    }


def _member(item: DatasetFacts, form: str, licences: Sequence[str]) -> dict[str, Any]:
    places = {"tiff-tree": f"{item.folder}/", "hf": f"data/{item.folder}/"}
    words = ", ".join(word for word in (item.organism, item.tissue, item.technique) if word)
    found: dict[str, Any] = {
        "@id": places.get(form, f"#dataset-{item.folder}"),
        "@type": "Dataset",
        "name": item.name,
        "description": f"{item.num_patches:,} patches of the dataset {item.name}" + (f" ({words})" if words else "") + ".",
        "identifier": f"sha256:{item.digest}",
        "license": {"@id": _licence_id(item.licence, licences)},
        "citation": {"@id": f"#citation-{item.folder}"},
    }
    if item.source_url.startswith(("https://", "http://")) and not any(letter.isspace() for letter in item.source_url):
        found["isBasedOn"] = item.source_url
    elif item.source_url:  # the curator wrote something that is not a URL
        found["description"] += f" Source: {item.source_url}"
    return found


def _licence_id(text: str, licences: Sequence[str]) -> str:
    return licence_url(text) or f"#licence-{licences.index(text) + 1}"


def _licences(licences: Sequence[str]) -> list[dict[str, Any]]:
    """Describe each licence once, with all the words that curators use for it."""
    words: dict[str, list[str]] = {}
    for text in licences:
        words.setdefault(_licence_id(text, licences), []).append(text)
    return [{"@id": name, "@type": "CreativeWork", "name": " / ".join(texts)} for name, texts in words.items()]
