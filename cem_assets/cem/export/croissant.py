"""A release in Croissant 1.0, a JSON-LD format in which datasets for machine learning describe themselves.

This follows the specification of the format (http://mlcommons.org/croissant/1.0). `cem_assets.cem.export.export` writes the
files that are described.
"""

from collections.abc import Sequence
from typing import Any

from cem_assets.cem.export.facts import METHOD_CITATION, UNKNOWN_AUTHORS, ExportedFile, ReleaseFacts, licence_url, media_type

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the appendix of the specification recommends."""

PATCH_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("dataset", "sc:Text", "Name of the dataset the patch is from."),
    ("name", "sc:Text", "Name of the patch: its volume and place."),
    ("volume", "sc:Text", "Name of the volume or image."),
    ("axis", "sc:Integer", "Axis of the plane: 0 xy, 1 xz, 2 yz, -1 for 2D images."),
    ("index", "sc:Integer", "Position of the plane along the axis."),
    ("y0", "sc:Integer", "First row in the plane, px."),
    ("y1", "sc:Integer", "Row behind the last, px."),
    ("x0", "sc:Integer", "First column in the plane, px."),
    ("x1", "sc:Integer", "Column behind the last, px."),
    ("dhash", "sc:Integer", "64-bit difference hash, unsigned."),
    ("num_duplicates", "sc:Integer", "Near copies in the dataset that the patch stands for."),
    ("informative", "sc:Float", "Probability that the patch is informative."),
)
"""Columns of the patches (name, data type, description), in order. They are the same in every form."""

_DATASET_FIELDS: tuple[tuple[str, str], ...] = (
    ("dataset", "Name of the dataset."),
    ("folder", "Name of its folder."),
    ("licence", "Licence of its patches."),
    ("citation", "How to cite it."),
    ("source_url", "Where it came from."),
)


def semantic_version(version: str) -> str:
    """Return for example "3.0.0" for "v3", as Croissant recommends, and other names unchanged."""
    number = version.removeprefix("v")
    return f"{number}.0.0" if number != version and number.isascii() and number.isdigit() else version


def croissant_metadata(release: ReleaseFacts, form: str, files: Sequence[ExportedFile]) -> dict[str, Any]:
    """Describe an export of a release.

    Args:
        form: "tiff-tree", "webdataset" or "hf".
        files: The files that are described one by one, with sizes and checksums. The images of a tree are not among them: there
            may be millions, so they are described by a pattern, and have their checksums in `metadata.csv`.

    Returns:
        JSON-LD; equal facts give an equal dict. A store knows citations but no creators, which the metadata says.
    """
    citations = [{"@type": "CreativeWork", "name": item.name, "text": item.citation} for item in release.datasets]
    urls = sorted({url for text in release.licences() if (url := licence_url(text))})
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": release.title,
        "alternateName": release.version,
        "identifier": f"sha256:{release.digest}",
        "description": release.summary,
        "url": "./",
        "version": semantic_version(release.version),
        "datePublished": release.published,
        "creator": [{"@type": "Organization", "name": UNKNOWN_AUTHORS}],
        "license": [*urls, *({"@type": "CreativeWork", "name": text} for text in release.licences() if not licence_url(text))],
        "citation": citations,
        "citeAs": " ; ".join(dict.fromkeys([*(item.citation for item in release.datasets), METHOD_CITATION])),
        "keywords": ["electron microscopy", "self-supervised learning", "cellular ultrastructure"],
        "isLiveDataset": False,
        "distribution": [*(_file_object(item) for item in files), *_file_sets(form, files)],
        "recordSet": [_datasets(), *_patches(form)],
    }


def _file_object(item: ExportedFile) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": item.path,
        "name": item.path,
        "contentUrl": item.path,
        "contentSize": f"{item.num_bytes} B",
        "encodingFormat": media_type(item.path),
        "sha256": item.sha256,
    }


def _file_sets(form: str, files: Sequence[ExportedFile]) -> list[dict[str, Any]]:
    found: dict[str, Any] = {"@type": "cr:FileSet", "@id": "patch-files", "name": "patch-files"}
    if form == "hf":
        return [found | {"encodingFormat": media_type("x.parquet"), "includes": "data/*/*.parquet"}]
    found |= {"encodingFormat": "image/tiff", "includes": "*/*.tiff"}
    if form == "webdataset":
        found["containedIn"] = [{"@id": item.path} for item in files if item.path.endswith(".tar")]
    return [found]


def _datasets() -> dict[str, Any]:
    fields = [
        _field("datasets", name, "sc:Text", text, {"fileObject": {"@id": "datasets.csv"}, "extract": {"column": name}})
        for name, text in _DATASET_FIELDS
    ]
    return _record_set("datasets", "One record for each dataset of the release.", "dataset", fields)


def _patches(form: str) -> list[dict[str, Any]]:
    source = {"fileSet": {"@id": "patch-files"}} if form == "hf" else {"fileObject": {"@id": "metadata.csv"}}
    fields = [_field("patches", name, kind, text, {**source, "extract": {"column": name}}) for name, kind, text in PATCH_FIELDS]
    fields[0]["references"] = {"field": {"@id": "datasets/dataset"}}
    about = "One record for each patch."
    if form == "hf":
        image = {**source, "extract": {"column": "image"}, "transform": {"jsonPath": "bytes"}}
        fields.append(_field("patches", "image", "sc:ImageObject", "The pixels, 8-bit gray TIFF.", image))
        return [_record_set("patches", about, "", fields)]
    more = (
        ("file", "Where the image is."),
        ("licence", "Licence of the patch, its dataset's."),
        ("sha256", "Checksum of the image's file."),
    )
    fields += [_field("patches", name, "sc:Text", text, {**source, "extract": {"column": name}}) for name, text in more]
    file = next(item for item in fields if item["@id"] == "patches/file")
    file["references"] = {"field": {"@id": "images/file"}}
    images = [
        _field("images", name, kind, text, {"fileSet": {"@id": "patch-files"}, "extract": {"fileProperty": part}})
        for name, kind, text, part in (
            ("file", "sc:Text", "Where the image is.", "fullpath"),
            ("image", "sc:ImageObject", "The pixels, 8-bit gray TIFF.", "content"),
        )
    ]
    return [
        _record_set("patches", about, "file", fields),
        _record_set("images", "One record for each image file.", "file", images),
    ]


def _record_set(name: str, description: str, key: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    found = {"@type": "cr:RecordSet", "@id": name, "name": name, "description": description, "field": fields}
    return found | ({"key": {"@id": f"{name}/{key}"}} if key else {})


def _field(owner: str, name: str, kind: str, description: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{owner}/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": source,
    }
