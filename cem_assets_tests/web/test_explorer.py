"""The explorer: which requests it accepts, what it finds and shows, and its page in a browser."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.testclient import TestClient

from cem_assets import readers
from cem_assets.cem.filter.params import FilterParams
from cem_assets.cem.filter.stage import keep_informative
from cem_assets.cem.patch_grid import parse_patch_name
from cem_assets.cem.releases.stage import make_release
from cem_assets.store.assets import VOLUMES
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store
from cem_assets.web.column_cache import ColumnCache, TableContent, main_table
from cem_assets.web.explorer import Explorer, explorer_app
from cem_assets.web.explorer_pictures import MAX_SLICE_PX
from cem_assets.web.volume_links import VolumeLinks, check_origin
from cem_assets_tests.cytoimagenet.example_sources import chain
from cem_assets_tests.pretraining.training_sets import put_filtered, textures
from cem_assets_tests.services import browser
from cem_assets_tests.services.stack import ROOT, wait_for

OUTPUT = ROOT / "test-output"
TOKEN, VOLUMES_TOKEN = "t" * 43, "v" * 43
HERE = "http://127.0.0.1:8000"
GUEST = "https://neuroglancer.example"


def open_client(store: Store, folder: Path, guest: str = "") -> TestClient:
    served = f"{HERE}/{VOLUMES_TOKEN}/" if guest else ""
    explorer = Explorer(store, folder / "columns", links=VolumeLinks(store.url, guest, served))
    app = explorer_app(explorer, TOKEN, VOLUMES_TOKEN if guest else "", guest)
    return TestClient(app, base_url=f"{HERE}/{TOKEN}/")


def ask(client: TestClient, path: str, **parameters) -> dict:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(client: TestClient, **parameters) -> list[str]:
    """Read every page of a selection."""
    found: list[str] = []
    while page := ask(client, "rows", limit=50, offset=len(found), **parameters)["rows"]:
        found += [row.get("name") or row["filename"] for row in page]
    assert len(found) == ask(client, "count", **parameters)["num"]
    return found


def decoded(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


@pytest.fixture
def half_kept(curated_store: Store) -> Store:
    """A store with `cells` filtered at the median of its scores, and a release of everything."""
    scores = readers.read_patches("cells", "scores", curated_store.url)["informative"]
    keep_informative(curated_store, "cells", FilterParams(threshold=float(scores.median())))
    make_release(curated_store)
    return curated_store


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/overview", {}),
        (f"/{TOKEN}x/overview", {}),
        (f"/{TOKEN[:-1]}/overview", {}),
        ("//overview", {}),
        (f"/{TOKEN}/overview", {"host": "evil.example:8000"}),
        (f"/{TOKEN}/overview", {"host": ""}),
        (f"/{TOKEN}/overview", {"origin": "http://evil.example"}),
        (f"/{TOKEN}/overview", {"origin": "null"}),
        (f"/{TOKEN}/overview", {"origin": GUEST}),
        (f"/{VOLUMES_TOKEN}/cells/x", {"origin": "http://evil.example"}),
        (f"/{VOLUMES_TOKEN}/cells/x", {"host": "evil.example"}),
    ],
)
def test_who_lacks_the_token_or_comes_from_elsewhere_is_refused(curated: Store, tmp_path: Path, path, headers):
    client = open_client(curated, tmp_path, GUEST)
    refused = client.get(f"{HERE}{path}", headers=headers)
    assert refused.status_code == 403 and "cells" not in refused.text and TOKEN not in refused.text
    assert client.get(f"{HERE}/{TOKEN}/overview", headers={"origin": HERE}).status_code == 200, "the same without the fault"


def test_the_page_asks_nothing_of_other_hosts_and_makes_no_markup_of_names(curated: Store, tmp_path: Path):
    client = open_client(curated, tmp_path)
    page = client.get("")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("explore.html", "explore.css", "explore.js", "filters.js", "details.js", "page.js"):
        text = client.get(f"static/{name}").raise_for_status().text
        assert not {"http:", "https:", "innerHTML", "outerHTML", "insertAdjacent", "eval("} & {w for w in text.split() if w}
        assert "innerHTML" not in text and "http://" not in text and "https://" not in text
    for name in ("__init__.py", "..%2fexplorer.py", "label.html"):
        assert client.get(f"static/{name}").status_code == 404


def test_every_filter_finds_what_pandas_finds(half_kept: Store, tmp_path: Path):
    client = open_client(half_kept, tmp_path)
    frame = readers.read_patches("cells", "scores", half_kept.url)
    low, high = (float(value) for value in frame["informative"].quantile([0.3, 0.8]))
    cases = {
        "axis": ({"axis": 1}, frame["axis"] == 1),
        "volume": ({"volume": "v"}, frame["volume"] == "v"),
        "score": ({"score_from": low, "score_to": high}, frame["informative"].between(np.float32(low), np.float32(high))),
        "duplicates": ({"duplicates_from": 1}, frame["num_duplicates"] >= 1),
        "slice": ({"index_from": 10, "index_to": 40}, frame["index"].between(10, 40)),
        "text": ({"text": "loc-2_"}, frame["name"].str.lower().str.contains("loc-2_", regex=False)),
        "capitals": ({"text": "Loc-2_"}, frame["name"].str.contains("Loc-2_", regex=False)),
        "two": ({"axis": 0, "score_from": low}, (frame["axis"] == 0) & (frame["informative"] >= np.float32(low))),
    }
    for what, (wish, expected) in cases.items():
        assert names(client, stage="scores", partition="cells", **wish) == frame["name"][expected].tolist(), what
    everything = pd.concat([frame, *(readers.read_patches(name, "scores", half_kept.url) for name in ("pictures", "twin"))])
    assert len(names(client, stage="scores")) == len(everything)
    facets = ask(client, "facets", stage="scores", axis=1)
    assert sum(facets["bins"]) == (everything["axis"] == 1).sum() == sum(item["num"] for item in facets["dataset"])
    down = names(client, stage="scores", partition="cells", sort="score_down")
    scores = frame.set_index("name")["informative"]
    assert scores[down].tolist() == sorted(scores, reverse=True)
    drawn = [names(client, stage="scores", sort="random", seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and sorted(drawn[0]) == sorted(drawn[2]) == sorted(everything["name"])


def test_what_became_of_every_patch_is_what_the_tables_say(half_kept: Store, tmp_path: Path):
    client = open_client(half_kept, tmp_path)
    raw = set(readers.read_patches("cells", "raw", half_kept.url)["name"])
    exemplars = set(readers.read_patches("cells", "deduplicated", half_kept.url)["name"])
    kept = set(readers.read_patches("cells", "filtered", half_kept.url)["name"])
    assert 0 < len(kept) < len(exemplars) < len(raw)
    expected = {"kept": kept, "uninformative": exemplars - kept, "duplicate": raw - exemplars, "undecided": set()}
    for fate, patches in expected.items():
        assert set(names(client, stage="raw", partition="cells", fate=fate)) == patches, fate
        shown = ask(client, "rows", stage="raw", partition="cells", fate=fate, limit=5)["rows"]
        assert {row["fate"] for row in shown} <= {fate}
    assert set(names(client, stage="scores", partition="cells", fate="kept")) == kept
    pairs = readers.read_duplicates("cells", half_kept.url)
    exemplar, num = pairs["exemplar"].value_counts().index[0], int(pairs["exemplar"].value_counts().iloc[0])
    told = ask(client, "patch", stage="raw", partition="cells", name=exemplar)["duplicates"]
    group = pairs[pairs["exemplar"] == exemplar]
    assert told["num"] == num and {item["name"]: item["distance"] for item in told["members"]} == dict(
        zip(group["name"], group["distance"], strict=True)
    )
    member = told["members"][0]["name"]
    other = ask(client, "patch", stage="raw", partition="cells", name=member)
    assert (other["duplicates"]["exemplar"], other["score"]["of"]) == (exemplar, exemplar)
    twins = {row["name"]: row["fate"] for row in ask(client, "rows", stage="scores", partition="twin", limit=200)["rows"]}
    assert set(twins.values()) == {"kept"}, "another dataset with the same names has its own fates"


def test_a_newer_upstream_leaves_fates_open(curated_local: Store, tmp_path: Path):
    client = open_client(curated_local, tmp_path)
    assert len(names(client, stage="scores", partition="cells", fate="kept"))
    curated_local.delete([item.key for item in curated_local.walk("cem/filtered_patches/cells")])
    client = open_client(curated_local, tmp_path)
    assert names(client, stage="scores", partition="cells", fate="kept") == []
    assert len(names(client, stage="scores", partition="cells", fate="undecided"))


@pytest.mark.parametrize("stage", ["raw", "deduplicated", "scores", "filtered", "release"])
def test_pictures_are_the_pixels_of_the_stage(half_kept: Store, tmp_path: Path, stage: str):
    client = open_client(half_kept, tmp_path)
    wish = {"stage": stage, "version": "v1" if stage == "release" else ""}
    for dataset in ("cells", "pictures"):
        images = dict(readers.iter_images(dataset, "filtered" if stage == "release" else stage, half_kept.url))
        for row in ask(client, "rows", partition=dataset, sort="random", limit=3, **wish)["rows"]:
            place = {key: row[key] for key in ("part", "row_group", "v", "name") if key in row}
            exact = client.get("image", params={**wish, "partition": dataset, "exact": True, **place})
            np.testing.assert_array_equal(decoded(exact), images[row["name"]])
            assert "immutable" in exact.headers["cache-control"]
            small = decoded(client.get("image", params={**wish, "partition": dataset, **place}))
            assert np.abs(small.astype(int) - images[row["name"]]).mean() < 6, "JPEG of the same picture"


def test_a_patch_leads_to_its_place_releases_licence_and_viewers(half_kept: Store, tmp_path: Path):
    client = open_client(half_kept, tmp_path, GUEST)
    volume = np.asarray(readers.open_volume("cells", root=half_kept.url)[:])
    row = ask(client, "rows", stage="filtered", partition="cells", axis=1, limit=1)["rows"][0]
    told = ask(client, "patch", stage="filtered", partition="cells", name=row["name"])
    place = parse_patch_name(row["name"])
    assert told["volume"]["shape"] == list(volume.shape) and told["place"]["plane"] == "xz"
    assert told["releases"] == [{"version": "v1", "is_in": True, "why": ""}]
    assert (told["facts"]["licence"], told["facts"]["citation"]) == ("CC0-1.0", "Test et al. 2026")
    assert told["score"]["outcome"] == "kept" and told["score"]["informative"] > told["score"]["threshold"]
    view = decoded(client.get("slice", params={"dataset": "cells", "volume": "v", "axis": 1, "index": 7, "y": 5, "x": 9}))
    assert view.shape == (70, 240) and max(view.shape) <= MAX_SLICE_PX
    assert np.abs(view.astype(int) - volume[:, 7, :]).mean() < 6
    state = json.loads(unquote(told["volume"]["links"]["neuroglancer"].split("#!")[1]))
    source = state["layers"][0]["source"].removeprefix("zarr://")
    assert source.startswith(f"{HERE}/{VOLUMES_TOKEN}/cells/") and state["position"][1] == place.index + 0.5
    assert f"dims.set_current_step(1, {place.index})" in told["volume"]["links"]["python"]
    compile(told["volume"]["links"]["python"], "napari", "exec")
    # Neuroglancer reads the metadata that the link names, then parts of shards.
    meta = client.get(f"{source}zarr.json", headers={"origin": GUEST})
    assert meta.headers["access-control-allow-origin"] == GUEST and meta.json()["attributes"]["ome"]["version"] == "0.5"
    key = "0/c/0/0/0"
    whole = client.get(f"{source}{key}", headers={"origin": GUEST}).content
    tail = client.get(f"{source}{key}", headers={"origin": GUEST, "range": "bytes=-100"})
    assert tail.status_code == 206 and tail.content == whole[-100:]
    piece = client.get(f"{source}{key}", headers={"origin": GUEST, "range": "bytes=10-19"})
    assert piece.content == whole[10:20] and piece.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    asked = client.options(f"{source}{key}", headers={"origin": GUEST, "access-control-request-headers": "range"})
    assert asked.status_code == 204 and asked.headers["access-control-allow-headers"] == "range"
    assert "access-control-allow-origin" not in client.get("overview").headers


@pytest.mark.parametrize(
    "path",
    ["../../inbox/cells/dataset.toml", "..%2f..%2fx", "zarr.json", "_manifests/1.json", "v.ome.zarr/../x", "v.ome.zarr/absent"],
)
def test_under_the_volumes_token_there_are_volumes_alone(curated: Store, tmp_path: Path, path: str):
    client = open_client(curated, tmp_path, GUEST)
    assert client.get(f"{HERE}/{VOLUMES_TOKEN}/cells/v.ome.zarr/zarr.json").status_code == 200
    for dataset in ("cells", "..", "%2e%2e", "absent"):
        assert client.get(f"{HERE}/{VOLUMES_TOKEN}/{dataset}/{quote(path, safe='%/')}").status_code in (400, 403, 404)
    for page in ("overview", "rows?stage=raw", ""):
        assert client.get(f"{HERE}/{VOLUMES_TOKEN}/{page}").status_code == 404
    assert open_client(curated, tmp_path).get(f"{HERE}/{VOLUMES_TOKEN}/cells/v.ome.zarr/zarr.json").status_code == 403


HOSTILE = [
    "'; DROP TABLE x; --",
    "' OR 1=1 --",
    "%' UNION SELECT * FROM read_csv('/etc/passwd') --",
    "\\",
    '"',
    "$1",
    "\0",
    "?",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_sql_in_filters_is_text(curated: Store, tmp_path: Path, text: str):
    client = open_client(curated, tmp_path)
    assert names(client, stage="raw", text=text) == []
    assert names(client, stage="raw", volume=text) == []
    assert client.get("rows", params={"stage": "raw", "partition": text}).status_code == 404
    assert client.get("patch", params={"stage": "raw", "partition": "cells", "name": text}).status_code == 404
    for name in ("axis", "score_from", "sort", "seed", "limit", "stage", "fate", "offset", "nonsense"):
        assert client.get("rows", params={"stage": "scores", name: text}).status_code == 400, name


def test_bad_wishes_are_refused_in_words(curated: Store, tmp_path: Path):
    client = open_client(curated, tmp_path)
    cases = [
        ("rows", {"stage": "raw", "score_from": 0.5}, 400, "does not apply"),
        ("rows", {"stage": "raw", "category": "x"}, 400, "does not apply"),
        ("rows", {"stage": "filtered", "fate": "duplicate"}, 400, "does not apply"),
        ("rows", {"stage": "release", "version": "v9"}, 404, "there is no release"),
        ("rows", {"stage": "scores", "score_from": "nan"}, 400, "score_from"),
        ("rows", {"stage": "raw", "limit": 100000}, 400, "limit"),
        ("labels", {"stage": "raw"}, 400, "has none"),
        ("slice", {"dataset": "cells", "volume": "v", "axis": 0, "index": 70, "y": 0, "x": 0}, 400, "no slice 70"),
        ("slice", {"dataset": "cells", "volume": "../v", "axis": 0, "index": 0, "y": 0, "x": 0}, 404, "no volume"),
        ("image", {"stage": "raw", "partition": "cells", "name": "v-LOC-0_99_0-130_0-224"}, 400, "no patch"),
        ("image", {"stage": "raw", "partition": "cells", "name": "v-LOC-0_09_0-9000_0-9000"}, 400, "no patch"),
        ("image", {"stage": "raw", "partition": "cells", "name": "../../etc/passwd"}, 400, "does not have the form"),
        ("image", {"stage": "filtered", "partition": "cells", "name": "x", "part": 7, "row_group": 0}, 404, "no part 7"),
        ("image", {"stage": "filtered", "partition": "cells", "name": "x", "part": 0, "row_group": 99}, 404, "no row group"),
        ("image", {"stage": "filtered", "partition": "../cells", "name": "x", "part": 0, "row_group": 0}, 404, "nothing"),
    ]
    for path, wish, status, words in cases:
        answer = client.get(path, params=wish)
        assert (answer.status_code, words in answer.text) == (status, True), (path, wish, answer.text)
    with pytest.raises(ValueError, match="neuroglancer is expected"):
        check_origin("javascript:alert(1)")


def test_a_bug_gives_500_and_is_logged_by_the_server(curated: Store, tmp_path: Path, monkeypatch):
    explorer = Explorer(curated, tmp_path / "columns")
    app = explorer_app(explorer, TOKEN)
    for error in (ValueError("shapes differ"), KeyError("name")):
        monkeypatch.setattr(explorer.questions, "rows", lambda selection, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):  # the server gets the error with its traceback, and logs it
            TestClient(app, base_url=f"{HERE}/{TOKEN}/").get("rows", params={"stage": "raw"})
        silent = TestClient(app, base_url=f"{HERE}/{TOKEN}/", raise_server_exceptions=False)
        answer = silent.get("rows", params={"stage": "raw"})
        assert (answer.status_code, str(error) in answer.text) == (500, False)


def test_the_connection_opens_no_other_file(curated: Store, tmp_path: Path):
    import duckdb

    explorer = Explorer(curated, tmp_path / "columns")
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    for sql in (f"SELECT * FROM read_csv('{tmp_path}/secret.csv')", "SET enable_external_access = true", "INSTALL httpfs"):
        with pytest.raises(duckdb.Error):
            explorer.questions.ask(sql, [])


def test_copies_of_columns_are_exact_made_once_and_the_oldest_go(half_kept: Store, tmp_path: Path):
    manifests = [require_manifest(half_kept, "cem/filtered_patches", name) for name in ("cells", "twin", "pictures")]
    tables = [main_table(manifest, True) for manifest in manifests]
    cache = ColumnCache(half_kept, tmp_path / "columns", max_bytes=1)
    for table in tables:
        (path,) = cache.files(table)
        copied = pd.read_parquet(path)
        expected = readers.read_patches(table.partition, "filtered", half_kept.url)
        pd.testing.assert_frame_equal(copied[expected.columns], expected, check_dtype=False)
        os.utime(path, (1, 1))  # long ago
    assert [path.name for path in (tmp_path / "columns").glob("*.parquet")] == [f"{tables[-1].key}.parquet"]
    before = cache.num_rows_copied
    cache.files(tables[-1])
    assert cache.num_rows_copied == before
    changed = TableContent(tables[0].partition, tables[0].folder, tables[0].objects[:0], True)
    assert changed.key != tables[0].key and cache.files(changed) == []
    raw = main_table(require_manifest(half_kept, "cem/raw_patches", "cells"), False)
    assert cache.is_in_place(raw) == half_kept.is_local


@pytest.fixture(scope="module")
def cyto(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("cyto") / "store"))
    chain(store)
    return store


def test_crops_and_labels_of_cytoimagenet(cyto: Store, tmp_path: Path):
    client = open_client(cyto, tmp_path)
    release = readers.read_cyto_release(root=cyto.url)
    frame, wish = release.metadata(), {"stage": "cyto_release", "version": "v1"}
    labels = ask(client, "labels", **wish)["labels"]
    expected = release.labels.sort_values(["label", "key"])
    assert [(row["partition"], row["label"], row["num"]) for row in labels] == list(
        expected[["key", "label", "num_images"]].itertuples(index=False, name=None)
    )
    for name, column in (("category", "category"), ("source", "source"), ("licence", "licence"), ("split", "split")):
        for value, num in frame[column].value_counts().items():
            assert ask(client, "count", **wish, **{name: value})["num"] == num
    scale = float(frame["scaling"].median())
    assert ask(client, "count", **wish, scale_to=scale)["num"] == (frame["scaling"] <= scale).sum()
    assert sorted(names(client, **wish)) == sorted(frame["filename"])
    pixels = {name: image for _, name, image in release.iter_images()}
    row = ask(client, "rows", **wish, sort="random", limit=1)["rows"][0]
    place = {key: row[key] for key in ("partition", "part", "row_group", "v")} | {"name": row["filename"]}
    np.testing.assert_array_equal(
        decoded(client.get("image", params={**wish, **place, "exact": True})), pixels[row["filename"]]
    )
    told = ask(client, "patch", stage="crops", partition=row["partition"], name=row["filename"])
    assert told["releases"] == [{"version": "v1", "is_in": True, "why": ""}]
    assert told["facts"]["citation"] and told["row"]["licence"] == row["licence"]


# The page in a real browser


class Server:
    """Run `cem-assets explore` as a process."""

    def __init__(self, store: Store, folder: Path, *more: str) -> None:
        command = [sys.executable, "-m", "cem_assets.cli", "--root", store.url, "explore", "--no-browser", *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        self.address = next((line.strip() for line in self._process.stdout if line.startswith("http")), "")
        assert self.address

    def end(self) -> int:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=30)
        return self._process.returncode


def until(page, script: str, seconds: float = 60) -> None:
    wait_for(script, lambda: page.evaluate(script), seconds, 0.02)


IS_SHOWN = "[...document.querySelectorAll('.cell img')].slice(0, 12).every(i => i.complete && i.naturalWidth) && %s"
IS_IDLE = "!document.body.classList.contains('busy')"


def test_a_biologist_goes_from_gallery_to_volume_by_keyboard(half_kept: Store, cyto: Store, tmp_path: Path):
    if not half_kept.is_local:
        pytest.skip("the browser is driven once, on the local store")
    if reason := browser.install():
        pytest.skip(reason)
    OUTPUT.mkdir(exist_ok=True)
    shutil.copytree(f"{cyto.url}/cytoimagenet", f"{half_kept.url}/cytoimagenet")
    evil = '<img src=x onerror="document.title=1">'
    put_filtered(half_kept, "evil", textures(30.0, 3, 1), prefix=evil)
    server = Server(half_kept, tmp_path)
    try:
        with browser.open_page(1500, 950) as page:
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(server.address)
            until(page, IS_SHOWN % "document.querySelectorAll('.cell').length > 12")
            page.locator("[data-stage=scores]").click()
            until(page, f"{IS_IDLE} && document.querySelectorAll('#filters svg').length === 1")
            page.get_by_role("button", name="uninformative", exact=True).click()
            until(page, f"{IS_IDLE} && location.search.includes('fate=uninformative')")
            until(page, "[...document.querySelectorAll('.cell')].every(c => c.classList.contains('uninformative'))")
            page.keyboard.press("c")
            until(page, f"{IS_IDLE} && !location.search.includes('fate')")
            page.keyboard.press("/")
            page.keyboard.type("loc-0_")
            until(page, f"{IS_IDLE} && location.search.includes('text=loc-0_')")
            until(page, "[...document.querySelectorAll('.cell')].every(c => c.dataset.name.includes('LOC-0_'))")
            page.keyboard.press("Escape")
            page.locator("#sort").select_option("score_down")
            until(page, IS_IDLE)
            page.locator(".cell").first.focus()
            page.keyboard.press("ArrowRight")
            second = page.locator(".cell").nth(1).get_attribute("data-name")
            page.keyboard.press("Enter")
            until(page, "document.querySelector('.frame img')?.naturalWidth > 0")
            assert page.locator("#details h2").text_content() == second
            assert "CC0-1.0" in page.locator("#details").text_content()
            page.keyboard.press("]")
            index = parse_patch_name(second).index
            until(page, f"document.querySelector('.where').textContent.startsWith('xy slice {min(index + 1, 69)} ')")
            until(page, "document.querySelector('.frame img').complete")
            page.screenshot(path=str(OUTPUT / "explorer.png"))
            link = page.evaluate("location.href")
            page.keyboard.press("Escape")
            until(page, "document.getElementById('details').hidden")
            page.goto(link)  # as a colleague opens it
            until(page, f"{IS_IDLE} && document.querySelector('#details h2')?.textContent === {json.dumps(second)}")
            assert page.locator("#sort").input_value() == "score_down" and page.locator("#f-text").input_value() == "loc-0_"
            page.goto(f"{server.address}?stage=filtered&partition=evil")
            until(page, f"{IS_IDLE} && document.querySelectorAll('.cell').length === 3")
            page.locator(".cell").first.click()
            until(page, "!document.getElementById('details').hidden")
            assert page.locator("#details h2").text_content().startswith(evil) and page.title() == "Explore"
            assert page.locator("img[src=x]").count() == 0
            page.goto(f"{server.address}?stage=crops")
            until(page, f"{IS_IDLE} && document.querySelectorAll('.cell').length > 2")
            until(page, IS_SHOWN % "true")
            page.screenshot(path=str(OUTPUT / "explorer-labels.png"))
            page.locator(".cell").first.click()
            until(page, f"{IS_IDLE} && location.search.includes('partition=')")
            page.locator(".cell").first.click()
            until(page, "document.querySelector('#details .exact')?.naturalWidth > 0")
            page.screenshot(path=str(OUTPUT / "explorer-crop.png"))
            assert errors == [] and page.locator("#alarm").text_content() == ""
        assert server.end() == 0
    finally:
        if server._process.poll() is None:
            server._process.kill()
    assert require_manifest(half_kept, VOLUMES, "cells")
