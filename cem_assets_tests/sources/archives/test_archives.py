"""Archives that list their files: answers in their documented forms, served on loopback, and answers that could do harm."""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cem_assets import environment
from cem_assets.sources.archives import ADAPTERS, archive_files, listings
from cem_assets.sources.archives.bbbc import bbbc_files
from cem_assets.sources.archives.biostudies import biostudies_files
from cem_assets.sources.archives.empiar import empiar_files
from cem_assets.sources.archives.figshare import figshare_files
from cem_assets.sources.archives.github import github_files
from cem_assets.sources.archives.idr import idr_files
from cem_assets.sources.archives.plain import plain_files
from cem_assets.sources.archives.zenodo import zenodo_files
from cem_assets.sources.files.download import download
from cem_assets_tests.services.unreliable_http import Answer, UnreliableHttp, serve_unreliably

DATA = random.Random(2).randbytes(5000)
MD5 = hashlib.md5(DATA).hexdigest()
COMMIT = "4a5f051466d24d8dc1e855ab55658bb1b1dcd6bf"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[UnreliableHttp]:
    monkeypatch.setenv(environment.ALLOW_PRIVATE_SOURCES.name, "yes")
    monkeypatch.setattr(listings, "_BACKOFF_S", 0.001)
    with serve_unreliably() as served:
        yield served


def serve_json(server: UnreliableHttp, path: str, answer: object) -> None:
    server.files[path] = json.dumps(answer).encode()


def zenodo_record(**changes: object) -> dict:
    file = {
        "id": "1f", "key": "raw data.tif", "size": len(DATA), "checksum": f"md5:{MD5}",
        "links": {"self": "https://evil.example/raw"},
    }  # fmt: skip
    metadata = {"title": "T", "access_right": "open", "license": {"id": "cc-by-4.0"}}
    return {"id": 4924875, "files": [file, {**file, "key": "b.zip"}], "metadata": metadata, **changes}


def test_zenodo_gives_size_md5_and_licence_and_its_links_lead_nowhere_else(server: UnreliableHttp, tmp_path: Path):
    serve_json(server, "api/records/4924875", zenodo_record())
    server.files["api/records/4924875/files/raw%20data.tif/content"] = DATA
    (found,) = zenodo_files("10.5281/zenodo.4924875", ["raw data.tif"], server.address)
    assert (found.name, found.num_bytes, found.checksum, found.licence) == ("raw data.tif", 5000, f"md5:{MD5}", "cc-by-4.0")
    assert download(found, [], tmp_path).path.read_bytes() == DATA
    assert [file.name for file in zenodo_files("4924875", None, server.address)] == ["b.zip", "raw data.tif"]
    with pytest.raises(FileNotFoundError, match=r"has no c.tif; it has b.zip, raw data.tif"):
        zenodo_files("4924875", ["b.zip", "c.tif"], server.address)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (zenodo_record(metadata={"access_right": "restricted"}), "access is 'restricted'; expected open"),
        (zenodo_record(files="none"), "'files' is no list"),
        (zenodo_record(files=[{"key": "../../x", "checksum": f"md5:{MD5}"}]), "path '../../x' is not allowed"),
        (zenodo_record(files=[{"key": "x", "checksum": "md5:0"}]), "checksum 'md5:0' is malformed"),
        (zenodo_record(files=[{"key": "x", "size": "-1"}]), "has size '-1'; expected a number of bytes"),
        ([], "answers with a list; expected a dict"),
    ],
)
def test_answers_that_make_no_sense_are_refused(server: UnreliableHttp, answer: object, message: str):
    serve_json(server, "api/records/1", answer)
    with pytest.raises(ValueError, match=message):
        zenodo_files("1", None, server.address)


def test_answers_are_bounded_and_asked_again_in_trouble(server: UnreliableHttp, monkeypatch: pytest.MonkeyPatch):
    serve_json(server, "api/records/1", zenodo_record())
    server.answers["api/records/1"] = [Answer(status=503), Answer(dies_after=50), Answer()]
    assert len(zenodo_files("1", None, server.address)) == 2 and len(server.asked) == 3
    server.answers["api/records/1"] = [Answer(status=500)]
    with pytest.raises(ConnectionError, match="could not be asked in 4 tries: status 500"):
        zenodo_files("1", None, server.address)
    with pytest.raises(FileNotFoundError, match="api/records/2: status 404: it is not there. Check the accession"):
        zenodo_files("2", None, server.address)
    for body in (b"<html>", b"[" * 100_000):
        server.answers["api/records/1"] = [Answer(body=body)]
        with pytest.raises(ValueError, match="answers with no JSON"):
            zenodo_files("1", None, server.address)
    with pytest.raises(ValueError, match="answers with more than 1,000 bytes"):
        server.answers["api/records/1"] = [Answer(body=bytes(2000), is_chunked=True)]
        listings.read_answer(f"{server.address}/api/records/1", max_bytes=1000)


def figshare_article(**changes: object) -> dict:
    file = {
        "id": 28363077, "name": "stack.zip", "size": len(DATA), "is_link_only": False, "supplied_md5": MD5,
        "computed_md5": MD5, "download_url": "https://evil.example/28363077",
    }  # fmt: skip
    return {"id": 856713, "files": [{**file, **changes}], "license": {"value": 1, "name": "CC BY 4.0"}}


def test_figshare_gives_size_md5_and_licence_of_a_version(server: UnreliableHttp, tmp_path: Path):
    serve_json(server, "v2/articles/856713/versions/1", figshare_article())
    server.files["files/28363077"] = DATA
    (found,) = figshare_files("10.6084/m9.figshare.856713.v1", None, server.address, f"{server.address}/files")
    assert (found.name, found.checksum, found.licence) == ("stack.zip", f"md5:{MD5}", "CC BY 4.0")
    assert download(found, [], tmp_path).path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_link_only": True}, "has only a link for 'stack.zip'"),
        ({"computed_md5": "0" * 32}, "expected one. Ask figshare"),
        ({"computed_md5": "", "supplied_md5": None}, "has md5 nowhere for 'stack.zip'"),
        ({"id": "1/../../x"}, "has size '1/../../x'; expected a number"),
        ({"id": None}, "gives no number for 'stack.zip'"),
    ],
)
def test_figshare_files_without_certain_contents_are_refused(server: UnreliableHttp, change: dict, message: str):
    serve_json(server, "v2/articles/1", figshare_article(**change))
    with pytest.raises(ValueError, match=message):
        figshare_files("1", None, server.address)


def test_github_gives_gits_own_digest_at_a_commit(server: UnreliableHttp, tmp_path: Path):
    sha = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    tree = [
        {"path": "stack1/raw/00.tif", "mode": "100644", "type": "blob", "sha": sha, "size": len(DATA)},
        {"path": "stack1", "mode": "040000", "type": "tree", "sha": sha},
        {"path": "link", "mode": "120000", "type": "blob", "sha": sha, "size": 3},
    ]
    path = f"repos/owner/name/git/trees/{COMMIT}?recursive=1"
    serve_json(server, path, {"sha": COMMIT, "tree": tree, "truncated": False})
    server.files[f"owner/name/{COMMIT}/stack1/raw/00.tif"] = DATA
    (found,) = github_files(f"owner/name@{COMMIT}", None, server.address, server.address)
    assert download(found, [], tmp_path).path == tmp_path / "stack1/raw/00.tif"
    server.files[f"owner/name/{COMMIT}/stack1/raw/00.tif"] = DATA[::-1]
    with pytest.raises(ValueError, match="it has git-sha1"):
        download(found, [], tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="has no link"):
        github_files(f"owner/name@{COMMIT}", ["link"], server.address, server.address)
    serve_json(server, path, {"tree": tree, "truncated": True})
    with pytest.raises(ValueError, match="lists only a part of the tree"):
        github_files(f"owner/name@{COMMIT}", None, server.address, server.address)


def test_biostudies_walks_sections_and_file_lists(server: UnreliableHttp, tmp_path: Path):
    study = {
        "accno": "S-BIAD634",
        "attributes": [{"name": "Title", "value": "Nuclei"}],
        "section": {
            "type": "Study",
            "attributes": [{"name": "License", "value": "CC0"}],
            "files": [
                {"path": "readme.txt", "size": 12, "type": "file"},
                [{"path": "in/table.csv", "size": 7, "type": "file"}],
            ],
            "subsections": [
                [{"type": "Author", "attributes": [{"name": "Name", "value": "A"}]}],
                {"type": "Study Component", "attributes": [{"name": "File List", "value": "list one.tsv"}]},
            ],
        },
    }
    serve_json(server, "api/v1/studies/S-BIAD634", study)
    more = [
        {"path": "images/a 1.tif", "size": len(DATA), "type": "file"},
        {"path": "plate.zarr", "size": 9, "type": "directory"},
    ]
    serve_json(server, "files/S-BIAD634/list%20one.json", more)
    server.files["files/S-BIAD634/images/a%201.tif"] = DATA
    wanted = ["images/a 1.tif", "in/table.csv", "readme.txt"]
    found = biostudies_files("S-BIAD634", wanted, server.address)
    assert [(file.name, file.num_bytes, file.licence) for file in found] == [
        ("images/a 1.tif", 5000, "CC0"), ("in/table.csv", 7, "CC0"), ("readme.txt", 12, "CC0"),
    ]  # fmt: skip
    assert download(found[0], [], tmp_path).path.read_bytes() == DATA
    with pytest.raises(ValueError, match="'plate.zarr' is a folder; expected files"):
        biostudies_files("S-BIAD634", None, server.address)
    study["section"]["attributes"].append({"name": "File List", "value": "../../../secret.json"})
    study["section"]["subsections"][1]["attributes"][0]["value"] = "../../../secret.json"
    serve_json(server, "api/v1/studies/S-BIAD634", study)
    with pytest.raises(ValueError, match="path '../../../secret.json' is not allowed"):
        biostudies_files("S-BIAD634", None, server.address)


INDEX = b"""<html><head><title>Index of /x</title></head><body><pre><img src="/icons/blank.gif">
<a href="?C=N;O=D">Name</a> <a href="?C=M;O=A">Last modified</a><hr><a href="../">Parent Directory</a>
<a href="a%20b.tif">a b.tif</a>  2019-01-02 10:00  1.2M
<A HREF="deep/">deep/</A> <a href="https://evil.example/x.tif">x</a> <a href="/other/y.tif">y</a> <a href="deep/z.tif">z</a>
<a name="anchor">no link</a> <a href="http://[broken">b</a></pre></body></html>"""


@pytest.mark.parametrize(
    ("adapter", "accession", "folder", "licence"),
    [
        (empiar_files, "EMPIAR-10094", "10094/data", "CC0 1.0"),
        (empiar_files, "10094", "10094/data", "CC0 1.0"),
        (idr_files, "idr0036-gustafsdottir-cellpainting", "idr0036-gustafsdottir-cellpainting", "see https://idr.openmicroscopy.org"),
        (bbbc_files, "BBBC013", "BBBC013", "see https://bbbc.broadinstitute.org/BBBC013"),
    ],
)  # fmt: skip
def test_folders_served_as_html_are_walked(
    server: UnreliableHttp, adapter, accession: str, folder: str, licence: str, tmp_path: Path
):
    server.files |= {f"{folder}/": INDEX, f"{folder}/deep/": b'<a href="z.tif">z</a><a href="/">up</a>'}
    server.files[f"{folder}/a%20b.tif"] = DATA
    found = adapter(accession, None, server.address)
    assert [(file.name, file.licence) for file in found] == [("a b.tif", licence), ("deep/z.tif", licence)]
    assert download(found[0], [], tmp_path).path.read_bytes() == DATA
    asked = len(server.asked)
    (named,) = adapter(accession, ["deep/z.tif"], server.address)
    assert named.url == f"{server.address}/{folder}/deep/z.tif" and len(server.asked) == asked, "names need no listing"


def test_a_listing_without_end_or_with_an_escape_is_refused(server: UnreliableHttp, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listings, "_MAX_FOLDERS", 20)
    with pytest.raises(ValueError, match="more than 20 folders"):
        listings.walk_listing("http://host/", lambda url: b'<a href="again/">x</a>')
    assert listings.links_below("http://host/d/", '<a href="..">x</a><a href="/d">y</a><a href=".">z</a>') == []
    for escape in ("a%5c..%5cb", "%2e%2e/", "a%0a"):
        with pytest.raises(ValueError, match="is not allowed"):
            listings.links_below("http://host/d/", f'<a href="{escape}">x</a>')


def test_plain_addresses_need_no_archive():
    (named,) = plain_files("https://host/folder/", ["a b.tif"])
    assert (named.name, named.url) == ("a b.tif", "https://host/folder/a%20b.tif")
    (single,) = plain_files("ftp://host/folder/c%20d.tif", None)
    assert (single.name, single.url) == ("c d.tif", "ftp://host/folder/c%20d.tif")
    for accession, names in (
        ("https://host/f/", None),
        ("https://host/f", ["a"]),
        ("file:///etc/passwd", None),
        ("s3://b/k", None),
    ):
        with pytest.raises(ValueError, match="expected"):
            plain_files(accession, names)
    with pytest.raises(ValueError, match="is not allowed"):
        plain_files("https://host/%2e%2e", None)


def test_every_archive_refuses_a_malformed_accession_and_path_in_words():
    for archive in ADAPTERS:
        for accession in ("../../etc", "", "x y"):
            with pytest.raises(ValueError, match="malformed|no known kind"):
                archive_files(archive, accession, ["a.tif"])
    for archive, accession in (
        ("empiar", "EMPIAR-10094"),
        ("idr", "idr0001-a-b"),
        ("bbbc", "BBBC001"),
        ("plain", "https://h/"),
    ):
        with pytest.raises(ValueError, match="is not allowed"):
            archive_files(archive, accession, ["../x"])
    with pytest.raises(KeyError, match="archive 'nowhere' is not known; expected one of bbbc, biostudies"):
        archive_files("nowhere", "1")
