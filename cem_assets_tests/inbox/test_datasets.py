"""The inbox: complete datasets, safe names, and digests that change with every file."""

from pathlib import Path

import pytest

from cem_assets.inbox.datasets import arrivals, path_problem, read_description, read_inbox, register_folder, shown_path
from cem_assets.store.store import Store
from cem_assets_tests.datasets import put_in_inbox, toml


def test_a_dataset_is_complete_when_its_description_is_there(store: Store):
    store.put("inbox/later/a.tif", b"1")
    put_in_inbox(store, "now", {"a.tif": b"1"})
    assert [found.dataset for found in arrivals(store)] == ["now"]
    with pytest.raises(FileNotFoundError, match=r"inbox/later/dataset.toml is missing .* An example:"):
        read_description(store, "later")


def test_every_file_is_listed_and_hashed(store: Store):
    put_in_inbox(store, "d", {"b/2.tif": b"22", "a 1,x.tif": b"1"})
    found = read_inbox(store, "d")
    assert [(item.path, item.num_bytes) for item in found.files][:2] == [("a 1,x.tif", 1), ("b/2.tif", 2)]
    assert found.files[1].sha256 == "785f3ec7eb32f30b90cd0fcf3657d388b5ff4297f2f9716ff66e9b69c05ddd09"
    assert [item.path for item in found.files][-1] == "dataset.toml"


@pytest.mark.parametrize("change", ["contents", "name", "more", "description"])
def test_the_digest_changes_when_anything_does(local_store: Store, change):
    put_in_inbox(local_store, "d", {"a.tif": b"1"})
    before = read_inbox(local_store, "d").digest
    assert read_inbox(local_store, "d").digest == before
    match change:
        case "contents":
            local_store.put("inbox/d/a.tif", b"2")
        case "name":
            local_store.delete(["inbox/d/a.tif"])
            local_store.put("inbox/d/b.tif", b"1")
        case "more":
            local_store.put("inbox/d/b.tif", b"1")
        case _:
            put_in_inbox(local_store, "d", {}, toml("d", organism='"mouse"'))
    assert read_inbox(local_store, "d").digest != before


def test_files_of_operating_systems_do_not_count(local_store: Store):
    put_in_inbox(local_store, "d", {"a.tif": b"1"})
    before = read_inbox(local_store, "d")
    for junk in (".DS_Store", "x/.hidden", "Thumbs.db", "__MACOSX/a.tif", "._a.tif"):
        local_store.put(f"inbox/d/{junk}", b"junk")
    assert read_inbox(local_store, "d") == before


def test_a_dataset_without_files_is_refused(local_store: Store):
    put_in_inbox(local_store, "d", {})
    with pytest.raises(ValueError, match="dataset 'd' has no files beside its dataset.toml"):
        read_inbox(local_store, "d")


def test_two_folders_cannot_be_one_dataset(local_store: Store):
    put_in_inbox(local_store, "first", {"a.tif": b"1"})
    put_in_inbox(local_store, "second", {"a.tif": b"1"}, toml("first"))
    with pytest.raises(ValueError, match=r"inbox/second/dataset.toml says name = 'first', but its folder is 'second'"):
        read_inbox(local_store, "second")


@pytest.mark.parametrize("name", ["../x", "a b", "", "..", "a/b"])
def test_partition_keys_that_are_no_names_touch_nothing(local_store: Store, name):
    with pytest.raises(ValueError, match="is not allowed"):
        read_inbox(local_store, name)


def test_a_description_too_large_is_not_read(local_store: Store):
    put_in_inbox(local_store, "d", {"a.tif": b"1"}, "#" * 70_000)
    with pytest.raises(ValueError, match="has 70000 bytes; expected at most 65536"):
        read_description(local_store, "d")


@pytest.mark.parametrize(
    "path",
    ["a.tif", "--W1--P1.tif", "Channel 1-01, x.tif", "zellkörper.tif", "图像.tif", "a/b/c.tif", "..a.tif", "x" * 250 + ".tif"],
)
def test_names_of_real_archives_are_allowed(path):
    assert path_problem(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "../a.tif",
        "a/../b.tif",
        "a//b.tif",
        "./a.tif",
        "a/",
        "a\\b.tif",
        "a\nb.tif",
        "a\x1b[31m.tif",
        "a\u202etif",
        "x" * 300 + ".tif",
        "ö" * 200,
        "/".join(["abcdefgh"] * 100),
    ],
)
def test_names_that_could_do_harm_are_refused_with_the_remedy(path):
    assert "Rename it." in path_problem(path)


def test_names_are_shown_without_control_characters_and_cut():
    assert shown_path("a\x1b[31m") == "a?[31m" and len(shown_path("x" * 1000)) == 160


def test_harmful_keys_on_s3_are_refused_and_the_rest_goes_on(s3_store: Store):
    put_in_inbox(s3_store, "d", {"a.tif": b"1"})
    base = s3_store.url.removeprefix("s3://")
    for name in ("x" * 300 + ".tif", "a\\b.tif", "b\tc.tif"):
        s3_store.fs.pipe_file(f"{base}/inbox/d/{name}", b"1")
    found = read_inbox(s3_store, "d")
    assert [item.path for item in found.files] == ["a.tif", "dataset.toml"] and len(found.rejections) == 3


# Registering a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    (path / "sub").mkdir(parents=True)
    (path / "a.tif").write_bytes(b"1")
    (path / "sub" / "b.tif").write_bytes(b"2")
    (path / ".DS_Store").write_bytes(b"junk")
    (path / "dataset.toml").write_text("# mine\n" + toml("mine"))
    return path


def test_registering_copies_the_files_and_the_description(store: Store, folder):
    assert register_folder(store, folder) == "mine"
    assert [item.key for item in store.walk("inbox")] == ["inbox/mine/a.tif", "inbox/mine/dataset.toml", "inbox/mine/sub/b.tif"]


def test_registering_again_changes_nothing(local_store: Store, folder):
    register_folder(local_store, folder)
    path = Path(local_store.url_of("inbox/mine/a.tif"))
    before = path.stat().st_mtime_ns
    assert register_folder(local_store, folder) == "mine" and path.stat().st_mtime_ns == before


def test_another_dataset_of_the_same_name_needs_a_word(store: Store, folder):
    register_folder(store, folder)
    (folder / "a.tif").write_bytes(b"changed")
    (folder / "sub" / "b.tif").unlink()
    with pytest.raises(
        FileExistsError, match=r"has a dataset 'mine' already, with other files. Give another name \(--name\), or replace it"
    ):
        register_folder(store, folder)
    assert store.read("inbox/mine/a.tif") == b"1"
    register_folder(store, folder, replace=True)
    assert [item.key for item in store.walk("inbox/mine")] == ["inbox/mine/a.tif", "inbox/mine/dataset.toml"]
    assert store.read("inbox/mine/a.tif") == b"changed"


def test_a_name_given_wins_and_comments_stay(local_store: Store, folder):
    assert register_folder(local_store, folder, "other") == "other"
    text = local_store.read("inbox/other/dataset.toml").decode()
    assert text.startswith("# mine\n") and read_description(local_store, "other").name == "other"
    with pytest.raises(ValueError, match="is not allowed"):
        register_folder(local_store, folder, "../x")


def test_the_description_is_written_last_and_removed_first(local_store: Store, folder, monkeypatch):
    order = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, key, data: (order.append(key), put(self, key, data))[1])
    register_folder(local_store, folder)
    assert order[-1] == "inbox/mine/dataset.toml"

    def dies(self, key, data):
        raise OSError("connection lost")

    (folder / "a.tif").write_bytes(b"changed")
    monkeypatch.setattr(Store, "put", dies)
    with pytest.raises(OSError, match="connection lost"):
        register_folder(local_store, folder, replace=True)
    assert list(arrivals(local_store)) == []


def test_folders_that_are_none_or_have_no_description(local_store: Store, tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        register_folder(local_store, tmp_path / "nowhere")
    (folder / "dataset.toml").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no dataset.toml; write one beside the images. An example:"):
        register_folder(local_store, folder)


def test_links_that_lead_out_of_the_folder_are_refused(local_store: Store, tmp_path, folder):
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "s.tif").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"s.tif is a link that leads out of"):
        register_folder(local_store, folder)
    assert list(arrivals(local_store)) == []
