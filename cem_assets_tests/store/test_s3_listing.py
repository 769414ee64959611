"""Listings of a bucket through obstore equal those of s3fs, for any keys."""

from itertools import islice

import pytest

from cem_assets.store import s3 as quick_s3
from cem_assets.store.s3 import QuickBucket
from cem_assets.store.store import Store, StoredObject

PLAIN = ("a/1.bin", "a/per%20cent+plus.tif", "a/zellkörper é.tif", "a/--W1 P,2 #[x]{y}^|<>&'\".tif", "b-c/x", "b/x", "b/y/z")
ODD = ("a/mark/", "a/mark/x", "a//b", "a/./x", "a/../x", "a/empty", "a/tab\tx", "b/", "b/%2F", "c/")


def put_raw(store: Store, key: str, data: bytes) -> None:
    """Write an object with a key that the store itself would refuse."""
    bucket, base = store.url.removeprefix("s3://").split("/", 1)
    store.fs.call_s3("put_object", Bucket=bucket, Key=f"{base}/{key}", Body=data)


def fill(store: Store, keys: tuple[str, ...]) -> None:
    for key in keys:
        put_raw(store, key, b"" if key.endswith(("/", "empty")) else key.encode())


def by_s3fs(store: Store, folder: str, after: str = "") -> list[StoredObject]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "_quick_bucket", lambda *_: None)
        return list(store.walk(folder, after))


def counted_pages(monkeypatch) -> list[object]:
    told: list[object] = []
    pages = QuickBucket.pages

    def counting(self, folder, behind):
        for page in pages(self, folder, behind):
            told.append(page)
            yield page

    monkeypatch.setattr(QuickBucket, "pages", counting)
    return told


def test_plain_keys_are_listed_by_obstore_as_by_s3fs(s3_store, monkeypatch):
    fill(s3_store, PLAIN)
    expected = by_s3fs(s3_store, "a")
    assert [item.key for item in expected] == sorted(key for key in PLAIN if key.startswith("a/"))
    told = counted_pages(monkeypatch)
    monkeypatch.setattr(s3_store.fs, "call_s3", lambda *_, **__: pytest.fail("s3fs was asked"))
    assert list(s3_store.walk("a")) == expected and told
    assert [item.key for item in s3_store.walk("b")] == ["b/x", "b/y/z"]


@pytest.mark.parametrize("page_keys", [2, 3, 1000])
def test_odd_keys_are_listed_as_by_s3fs_from_wherever_pages_end(s3_store, monkeypatch, page_keys):
    fill(s3_store, PLAIN + ODD)
    monkeypatch.setattr(quick_s3, "PAGE_KEYS", page_keys)
    call_s3 = s3_store.fs.call_s3
    monkeypatch.setattr(s3_store.fs, "call_s3", lambda *args, **more: call_s3(*args, **{"MaxKeys": page_keys, **more}))
    for folder in ("a", "b", "c", "none"):
        expected = by_s3fs(s3_store, folder)
        assert list(s3_store.walk(folder)) == expected
        assert [item.key for item in expected] == sorted(key for key in PLAIN + ODD if key.startswith(f"{folder}/"))
    assert list(s3_store.walk("b", "mark")) == by_s3fs(s3_store, "b", "mark")
    assert list(s3_store.walk("a", "mark")) == by_s3fs(s3_store, "a", "mark")


def test_one_odd_page_costs_one_page_of_s3fs(s3_store, monkeypatch):
    fill(s3_store, (*(f"many/{number:02d}" for number in range(12)), "many/05/"))
    monkeypatch.setattr(quick_s3, "PAGE_KEYS", 3)
    call_s3, asked = s3_store.fs.call_s3, []
    monkeypatch.setattr(
        s3_store.fs, "call_s3", lambda *args, **more: (asked.append(args), call_s3(*args, **{"MaxKeys": 3, **more}))[1]
    )
    told = counted_pages(monkeypatch)
    assert len(list(s3_store.walk("many"))) == 13
    assert len(asked) == 1 and sum(page is not None for page in told) == 4


def test_no_more_is_listed_than_is_wanted(s3_store, monkeypatch):
    fill(s3_store, tuple(f"many/{number}" for number in range(9)))
    monkeypatch.setattr(quick_s3, "PAGE_KEYS", 2)
    told = counted_pages(monkeypatch)
    assert len(list(islice(s3_store.walk("many"), 3))) == 3 and len(told) == 2
