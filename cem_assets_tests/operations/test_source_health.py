"""Rows of the catalogue whose sources fail: mirrors serve their files, the trouble is recorded, licences must be accepted."""

import hashlib
import io
import random
import zipfile
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cem_assets import environment
from cem_assets.catalog import EmDataset, em_datasets, parse_em_datasets
from cem_assets.operations.catalogue_intake import fetch_row
from cem_assets.operations.licences import SETTINGS
from cem_assets.operations.source_health import health_key, record_trouble, source_health
from cem_assets.sources import archives
from cem_assets.sources.archives import listings
from cem_assets.sources.archives.zenodo import zenodo_files
from cem_assets.sources.files.description import DownloadLimits
from cem_assets.store.store import Store
from cem_assets_tests.catalog.test_em_datasets import GOOD, TEXT
from cem_assets_tests.services.unreliable_http import Answer, UnreliableHttp, serve_unreliably

DATA = random.Random(5).randbytes(400_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[UnreliableHttp]:
    monkeypatch.setenv(environment.ALLOW_PRIVATE_SOURCES.name, "yes")
    monkeypatch.setattr("cem_assets.sources.files.download.DownloadLimits", lambda: DownloadLimits(10**7, 2, 0.01, 5.0))
    monkeypatch.setattr(listings, "_BACKOFF_S", 0.001)
    with serve_unreliably({"p/a%20b.tif": DATA, "m/a%20b.tif": DATA}) as server:
        yield server


@pytest.fixture
def row(served: UnreliableHttp, monkeypatch: pytest.MonkeyPatch) -> EmDataset:
    base, mirror = f"{served.address}/p/", f"{served.address}/m/"
    size = (8.0, 8.0, 8.0)
    made = EmDataset(
        "far", True, "volume", size, "CC0", "T 2026", "", "", "", base, base, {"a b.tif": SHA256}, mirrors=(mirror,)
    )
    use(monkeypatch, made)
    return made


def use(monkeypatch: pytest.MonkeyPatch, row: EmDataset) -> None:
    monkeypatch.setattr("cem_assets.operations.catalogue_intake.em_datasets", lambda: {row.name: row})


def arrived(store: Store) -> str:
    return hashlib.sha256(store.read("inbox/far/a b.tif")).hexdigest()


def test_link_rot_is_bridged_by_the_mirror_and_recorded_until_the_source_works_again(
    row: EmDataset, served: UnreliableHttp, local_store: Store
):
    served.answers["p/a%20b.tif"] = [Answer(dies_after=150_000), Answer(status=503)]
    assert fetch_row(local_store, "far") == "far"
    assert arrived(local_store) == SHA256 and served.ranges("m/a%20b.tif") == ["bytes=150000-"]
    (trouble,) = source_health(local_store)
    assert (trouble.name, trouble.count, trouble.served_by) == ("far", 1, f"{served.address}/m/a%20b.tif")
    assert trouble.url == f"{served.address}/p/a%20b.tif" and "status 503" in trouble.reason and trouble.date == trouble.since
    served.answers["m/a%20b.tif"] = [Answer(status=404)]
    with pytest.raises(ConnectionError, match="could not be fetched"):
        fetch_row(local_store, "far")
    (again,) = source_health(local_store)
    assert (again.count, again.since, again.served_by) == (2, trouble.since, "")
    assert arrived(local_store) == SHA256, "what came earlier goes on serving"
    served.answers.clear()
    fetch_row(local_store, "far")
    assert source_health(local_store) == [] and local_store.size(health_key("far")) is None


def test_other_contents_at_the_source_are_recorded_too(row: EmDataset, served: UnreliableHttp, local_store: Store):
    served.answers["p/a%20b.tif"] = [Answer(body=b"a login page")]
    fetch_row(local_store, "far")
    (trouble,) = source_health(local_store)
    assert arrived(local_store) == SHA256 and "it has sha256" in trouble.reason


def zenodo(served: UnreliableHttp, monkeypatch: pytest.MonkeyPatch, checksum: str) -> None:
    body = f'{{"files": [{{"key": "a b.tif", "size": {len(DATA)}, "checksum": "{checksum}"}}]}}'
    served.files["api/records/7"] = body.encode()
    served.files["api/records/7/files/a%20b.tif/content"] = DATA
    monkeypatch.setitem(archives.ADAPTERS, "zenodo", lambda accession, names: zenodo_files(accession, names, served.address))


def test_a_row_of_an_archive_is_fetched_by_the_archives_own_checksum(
    row: EmDataset, served: UnreliableHttp, local_store: Store, monkeypatch: pytest.MonkeyPatch
):
    zenodo(served, monkeypatch, f"md5:{hashlib.md5(DATA).hexdigest()}")
    use(monkeypatch, replace(row, base_url="", archive="zenodo", accession="7", files={}))
    fetch_row(local_store, "far")
    assert arrived(local_store) == SHA256 and source_health(local_store) == []


def test_an_archive_that_is_gone_is_replaced_by_the_mirror_of_known_files(
    row: EmDataset, served: UnreliableHttp, local_store: Store, monkeypatch: pytest.MonkeyPatch
):
    zenodo(served, monkeypatch, f"md5:{'0' * 32}")
    served.answers["api/records/7"] = [Answer(status=500)]
    use(monkeypatch, replace(row, base_url="", archive="zenodo", accession="7"))
    fetch_row(local_store, "far")
    assert arrived(local_store) == SHA256
    (trouble,) = source_health(local_store)
    assert (trouble.url, trouble.served_by) == ("zenodo 7", f"{served.address}/m/")
    served.answers["api/records/7"] = [Answer(body=b"<html>This archive has moved</html>")]
    fetch_row(local_store, "far")
    (trouble,) = source_health(local_store)
    assert trouble.count == 2 and "answers with no JSON" in trouble.reason
    served.answers["api/records/7"] = [Answer(status=500)]
    use(monkeypatch, replace(row, base_url="", archive="zenodo", accession="7", files={}))
    with pytest.raises(ConnectionError, match="could not be asked"):
        fetch_row(local_store, "far")
    served.answers.clear()
    # The registry's sha256 counts before the archive's md5, which is that of other contents here.
    use(monkeypatch, replace(row, base_url="", archive="zenodo", accession="7"))
    fetch_row(local_store, "far")
    assert source_health(local_store) == []


def test_an_archive_without_checksums_needs_a_registry(row: EmDataset, local_store: Store, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, replace(row, base_url="", archive="plain", accession="https://host/a.tif", files={}))
    with pytest.raises(ValueError, match="plain gives no checksum for 1 file"):
        fetch_row(local_store, "far")


def test_a_zip_arrives_unpacked(row: EmDataset, served: UnreliableHttp, local_store: Store, monkeypatch: pytest.MonkeyPatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("stack/1.tif", DATA)
    served.files["p/all.zip"] = packed.getvalue()
    use(monkeypatch, replace(row, files={"all.zip": hashlib.sha256(packed.getvalue()).hexdigest()}))
    fetch_row(local_store, "far")
    assert local_store.read("inbox/far/all/stack/1.tif") == DATA
    assert [item.key for item in local_store.walk("inbox/far")] == ["inbox/far/all/stack/1.tif", "inbox/far/dataset.toml"]


def test_a_licence_must_be_accepted_by_name(
    row: EmDataset, served: UnreliableHttp, local_store: Store, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, replace(row, licence_must_be_accepted=True))
    local_store.put(SETTINGS, b'accepted = ["other"]\n')
    with pytest.raises(PermissionError, match=r'(?s)accept its licence \(CC0; .*settings/licences.toml.*\["far", "other"\]'):
        fetch_row(local_store, "far")
    assert served.asked == [] and source_health(local_store) == []
    for text, message in ((b"accepted = [", "is not valid TOML"), (b'accepted = "far"', "expected a list of names")):
        local_store.put(SETTINGS, text)
        with pytest.raises(ValueError, match=message):
            fetch_row(local_store, "far")
    local_store.put(SETTINGS, b'accepted = ["far", "other"]\n')
    assert fetch_row(local_store, "far") == "far" and arrived(local_store) == SHA256


def test_records_are_listed_in_order_on_any_store(store: Store):
    for name in ("b", "a", "c.v1"):
        record_trouble(store, name, "https://host/", "gone\nfor good")
    assert [(item.name, item.reason) for item in source_health(store)] == [(n, "gone for good") for n in ("a", "b", "c.v1")]
    store.put(health_key("a"), b"{}")
    with pytest.raises(ValueError, match=r"quarantine/sources/a.json is damaged.*Remove it"):
        source_health(store)


def parsed(**changes: str) -> EmDataset:
    columns = [*TEXT.splitlines()[0].split(","), "archive", "accession", "mirrors", "must_accept"]
    local = {key: GOOD[key] for key in list(GOOD)[:8]} | changes
    text = ",".join(columns) + "\n" + ",".join(local.get(column, "") for column in columns) + "\n"
    return parse_em_datasets(text, lambda name: f"f.tif {SHA256}\n")["a"]


def test_rows_may_name_archive_mirrors_and_acceptance():
    found = parsed(archive="zenodo", accession="7", mirrors="https://x/ s3://b/m/", must_accept="yes")
    assert (found.archive, found.accession, found.files) == ("zenodo", "7", {})
    assert found.mirrors == ("https://x/", "s3://b/m/") and found.licence_must_be_accepted
    assert parsed(registry="r.txt", base_url="https://x/").files == {"f.tif": SHA256}
    for row in em_datasets().values():
        assert row.archive in ("", *archives.ADAPTERS) and not row.licence_must_be_accepted
    for changes, message in (
        ({"archive": "zenodo"}, "must be given together"),
        ({"archive": "zenodo", "accession": "7", "base_url": "https://x/"}, "instead of base_url"),
        ({"registry": "r.txt", "base_url": "https://x/", "mirrors": "https://y"}, "with a slash at their end"),
        ({"registry": "r.txt", "base_url": "https://x/", "must_accept": "maybe"}, "must_accept is 'maybe'"),
        ({**GOOD, "archive": "zenodo", "accession": "7"}, "only have a meaning without remote_url"),
    ):
        with pytest.raises(ValueError, match=message):
            parsed(**changes)
