"""The labelling page: which requests it accepts, what it shows and keeps, and labelling by keyboard in a browser."""

import io
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from cem_assets import readers
from cem_assets.cem.classifier.answers import EVENTS, LabelLog, current_labels
from cem_assets.cem.classifier.labels import read_labels
from cem_assets.cem.page_links import labelling_url
from cem_assets.store.assets import CLASSIFIER, SCORES
from cem_assets.store.manifests import current_manifest
from cem_assets.store.store import Store
from cem_assets.web import labelling
from cem_assets.web.labelling import LabellingSession, labelling_app
from cem_assets.web.next_patches import Order
from cem_assets.web.serving import Address, open_port, remember_address, remembered_address
from cem_assets_tests.pretraining.training_sets import put_filtered, textures
from cem_assets_tests.services import browser
from cem_assets_tests.services.stack import ROOT, wait_for

OUTPUT = ROOT / "test-output"
TOKEN = "t" * 43
HERE = "http://127.0.0.1:8000"


def tiles(num: int, side_px: int = 112) -> list[np.ndarray]:
    """Draw `num` distinct pictures: a few textures, shifted."""
    drawn = [texture[:side_px, :side_px] for period in (8.0, 24.0, 60.0) for texture in textures(period, 4, int(period))]
    return [np.roll(drawn[number % len(drawn)], 7 * number, axis=1) for number in range(num)]


@pytest.fixture
def shards(local_store: Store) -> Store:
    put_filtered(local_store, "tiles", tiles(12))
    return local_store


def open_client(store: Store, dataset: str = "tiles", order: Order = Order.random, **more) -> TestClient:
    client = TestClient(
        labelling_app(LabellingSession(store, dataset, order), TOKEN, "ann", **more), base_url=f"{HERE}/{TOKEN}/"
    )
    client.headers["origin"] = HERE
    return client


def answer(number: int, name: str, label: str = "good", annotator: str = "ann", **more) -> dict:
    return {
        "event_id": f"{1_700_000_000_000 + number}-{number:016x}",
        "name": name,
        "label": label,
        "annotator": annotator,
        **more,
    }


def send(client: TestClient, *answers: dict) -> dict:
    return client.post("answers", json={"answers": answers}).raise_for_status().json()


def ask(client: TestClient, annotator: str = "ann", **more) -> list[str]:
    return client.post("next", json={"annotator": annotator, **more}).raise_for_status().json()["patches"]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/session", {}),
        (f"/{TOKEN}x/session", {}),
        (f"/{TOKEN[:-1]}/session", {}),
        ("//session", {}),
        (f"/x/{TOKEN}/session", {}),
        (f"/{TOKEN}/session", {"host": "evil.example:8000"}),
        (f"/{TOKEN}/session", {"host": ""}),
        (f"/{TOKEN}/session", {"origin": "http://evil.example"}),
        (f"/{TOKEN}/session", {"origin": "http://127.0.0.1:9"}),
        (f"/{TOKEN}/session", {"origin": "null"}),
    ],
)
def test_who_lacks_the_token_or_comes_from_elsewhere_is_refused(shards: Store, path, headers):
    client = open_client(shards)
    del client.headers["origin"]
    refused = client.get(f"{HERE}{path}", headers=headers)
    assert refused.status_code == 403 and "tiles" not in refused.text and TOKEN not in refused.text
    assert client.get(f"{HERE}/{TOKEN}/session").status_code == 200, "the same without the fault"


def test_the_page_asks_nothing_of_other_hosts(shards: Store):
    client = open_client(shards)
    page = client.get("")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("label.html", "label.css", "label.js", "answers.js"):
        text = client.get(f"static/{name}").raise_for_status().text
        assert "http:" not in text and "https:" not in text and "innerHTML" not in text
    assert client.get("static/__init__.py").status_code == 404
    assert client.get("static/..%2flabelling.py").status_code == 404


def test_a_picture_is_the_patch_of_the_shard(shards: Store):
    client = open_client(shards)
    images = dict(readers.iter_images("tiles", root=shards.url))
    for name in ask(client):
        reply = client.get("image", params={"name": name}).raise_for_status()
        assert reply.headers["content-type"] == "image/png" and "immutable" in reply.headers["cache-control"]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(reply.content))), images[name])
    assert client.get("image", params={"name": "../x"}).status_code == 404


def test_scored_patches_come_least_certain_first_cut_out_of_their_volume(curated_local: Store):
    client = open_client(curated_local, "cells", Order.uncertainty)
    scores = readers.read_patches("cells", "scores", curated_local.url).set_index("name")["informative"]
    found = ask(client, num=200)
    distances = (scores.astype(np.float64) - 0.5).abs()
    assert len(set(found)) == min(200, len(scores))
    assert distances[found].tolist() == sorted(distances)[: len(found)]
    assert client.get("session").json()["order"] == "uncertainty"
    manifest = current_manifest(curated_local, SCORES, "cells")
    assert client.get("session").json()["classifier"] == manifest.inputs.upstream[CLASSIFIER]
    images = dict(readers.iter_images("cells", "scores", curated_local.url))
    for name in found[:5]:
        png = client.get("image", params={"name": name}).content
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), images[name])


def test_without_a_classifier_deduplicated_patches_come_at_random(curated_local: Store, caplog):
    curated_local.delete([item.key for item in curated_local.walk(f"{SCORES}/pictures")])
    client = open_client(curated_local, "pictures", Order.uncertainty)
    assert "no scores yet" in caplog.text
    told = client.get("session").json()
    assert (told["order"], told["asset"], told["classifier"]) == ("random", "cem/deduplicated_patches", "")
    assert client.get("image", params={"name": ask(client)[0]}).content.startswith(b"\x89PNG")


def test_a_dataset_without_patches_is_refused_with_the_remedy(local_store: Store):
    with pytest.raises(FileNotFoundError, match="materialize cem/deduplicated_patches"):
        LabellingSession(local_store, "absent")


def test_an_answer_lies_in_the_store_before_it_is_acknowledged_and_once(shards: Store):
    client = open_client(shards)
    first, second = ask(client, num=2)
    assert send(client, answer(1, first), answer(2, second, "bad"))["accepted"] == [
        answer(1, first)["event_id"],
        answer(2, "")["event_id"],
    ]
    assert len(list(shards.walk(EVENTS))) == 2
    assert send(client, answer(1, first))["accepted"], "sent again, as after a lost reply"
    assert send(client, answer(1, first, "bad"))["refused"][0]["reason"].endswith("a new id for a new answer.")
    assert len(list(shards.walk(EVENTS))) == 2
    other = open_client(shards)  # the server was killed, and started anew
    assert send(other, answer(1, first))["accepted"] and len(list(shards.walk(EVENTS))) == 2
    assert not {first, second} & set(ask(other)) and {first, second} < set(ask(other, "zoe"))
    send(other, answer(3, second, "undo", undoes=answer(2, "")["event_id"]))
    assert second in ask(client), "taken back in another session, so it is asked again"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "tiles-LOC-2d-0-1_0-1"},
        {"annotator": "../x"},
        {"label": "none"},
        {"event_id": "x"},
        {"event_id": f"9999999999999-{0:016x}"},
        {"dataset": "other", "more": 1},
    ],
)
def test_an_answer_that_breaks_a_rule_is_refused_and_the_others_kept(shards: Store, change):
    client = open_client(shards)
    first, second = ask(client, num=2)
    reply = send(client, {**answer(1, first), **change}, answer(2, second))
    assert reply["accepted"] == [answer(2, "")["event_id"]] and len(reply["refused"]) == 1 and reply["refused"][0]["reason"]
    assert len(list(shards.walk(EVENTS))) == 1


def test_bodies_that_are_too_large_or_no_json_are_refused(shards: Store):
    client = open_client(shards)
    as_json = {"content-type": "application/json"}
    cases = [
        ("answers", b"x" * (labelling.MAX_BODY_BYTES + 1), as_json, 413),
        ("answers", b"{", as_json, 400),
        ("answers", b"[" * 200_000, as_json, 400),
        ("answers", b'{"answers": 1}', as_json, 400),
        ("answers", b'{"answers": [%s0]}' % (b"0," * 100), as_json, 400),
        ("answers", b'{"answers": []}', {"content-type": "text/plain"}, 415),
        ("next", b'{"annotator": "a/b"}', as_json, 400),
        ("next", b'{"annotator": "ann", "num": 100000}', as_json, 400),
    ]
    for path, body, headers, status in cases:
        assert client.post(path, content=body, headers=headers).status_code == status, body[:40]
    assert list(shards.walk(EVENTS)) == []


def test_a_store_that_cannot_be_written_acknowledges_nothing(shards: Store, monkeypatch):
    client = open_client(shards)
    (name,) = ask(client, num=1)
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(Store, "create", full)
        assert client.post("answers", json={"answers": [answer(1, name)]}).status_code == 503
    assert name in ask(client) and send(client, answer(1, name))["accepted"]


def test_a_bug_is_neither_a_refused_answer_nor_a_busy_store(shards: Store, monkeypatch):
    def broken(log: LabelLog, event: object) -> None:
        raise ValueError("shapes differ")

    client = open_client(shards)
    name = ask(client)[0]
    monkeypatch.setattr(LabelLog, "append", broken)
    with pytest.raises(ValueError, match="shapes differ"):  # the server gets the error with its traceback, and logs it
        send(client, answer(1, name))
    silent = TestClient(client.app, base_url=f"{HERE}/{TOKEN}/", raise_server_exceptions=False, headers={"origin": HERE})
    reply = silent.post("answers", json={"answers": [answer(1, name)]})
    assert (reply.status_code, "shapes differ" in reply.text) == (500, False)


def test_many_pages_at_once_lose_nothing_and_their_agreement_is_counted(shards: Store):
    ended: list[str] = []
    with open_client(shards, on_end=ended.extend) as client:
        names = ask(client)

        def label(who: int) -> None:
            for number, name in enumerate(names):
                label = "bad" if who == 1 and number == 0 else "good"
                send(client, answer(100 * who + number, name, label, f"ann{who}"))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(label, range(4)))
        told = client.get("progress").json()
    assert [row["good"] + row["bad"] for row in told["annotators"]] == [12] * 4
    assert (told["num_labelled"], told["num_shared"], told["num_conflicts"], told["kappa"]) == (12, 12, 1, None)
    assert told["observed"] == pytest.approx((11 + 0.5) / 12)
    assert "12 good" in ended[0] and "do not agree on 1" in ended[1], "the table is written when the session ends"
    assert read_labels(shards)[0]["label"].tolist() == ["good"] * 12


def test_an_address_is_remembered_for_its_owner_only(tmp_path: Path):
    path = tmp_path / "sub/a.json"
    assert remembered_address(path) is None
    remember_address(path, Address(4321, TOKEN))
    assert remembered_address(path) == Address(4321, TOKEN) and path.stat().st_mode & 0o777 == 0o600
    for text in ("{", "[]", f'{{"port": 0, "token": "{TOKEN}"}}', '{"port": 80, "token": "short"}'):
        path.write_text(text)
        assert remembered_address(path) is None
    remember_address(path, Address(4321, TOKEN))
    path.chmod(0o644)
    assert remembered_address(path) is None, "others could have read it"


def test_a_taken_port_is_said():
    with open_port(0) as listener, pytest.raises(OSError, match="Give another --port"):
        open_port(listener.getsockname()[1])


def test_the_link_in_metadata_leads_to_the_page_once_the_browser_knows_it(local_store: Store, tmp_path: Path):
    if reason := browser.install():
        pytest.skip(reason)
    put_filtered(local_store, "tiles", tiles(12))
    server = Server(local_store, tmp_path)
    address = server.start()
    origin = address.rsplit("/", 2)[0]
    link = f"{origin}/door/label/tiles"  # labelling_url, but for the port where another session holds that one
    assert labelling_url("tiles").endswith("/door/label/tiles") and labelling_url("a/b").endswith("/a%2Fb")
    try:
        with browser.open_page(900, 700) as page:
            page.goto(link)
            assert "cem-assets label tiles" in page.inner_text("body")
            assert address.rstrip("/").rsplit("/", 1)[1] not in page.content(), "the door gives no secret away"
            page.goto(address)
            next_shown(page)
            page.goto(link)
            page.wait_for_url(address)  # not by evaluating: the door's script may be leaving the page just then
            next_shown(page)
            page.goto(f"{origin}/door/label/%3Cimg src=x onerror=alert(1)%3E")
            assert page.query_selector("img") is None and "<img src=x" in page.inner_text("body")
    finally:
        server.end()


def test_the_door_is_read_only_and_opens_nothing_else(local_store: Store):
    put_filtered(local_store, "tiles", tiles(3))
    client = open_client(local_store)
    assert client.get(f"{HERE}/door/label/tiles").status_code == 200 and client.get(f"{HERE}/door/door.js").status_code == 200
    assert client.post(f"{HERE}/door/label/tiles").status_code == 403
    assert client.get(f"{HERE}/door/label/tiles", headers={"host": "evil.example"}).status_code == 403
    assert client.get(f"{HERE}/door/label.html").status_code == 404 and client.get(f"{HERE}/session").status_code == 403
    assert client.get(f"{HERE}/door/../session").status_code in (403, 404)


class Server:
    """Run `cem-assets label` as a process that can be killed."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._command = [
            sys.executable,
            "-m",
            "cem_assets.cli",
            "--root",
            store.url,
            "label",
            "tiles",
            "--annotator",
            "ann",
        ]
        self._folder, self.lines = folder, []

    def start(self) -> str:
        """Start it; return the address it prints."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*self._command, "--no-browser"], cwd=self._folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        for line in self._process.stdout:
            self.lines.append(line)
            if line.startswith("http"):
                return line.strip()
        raise RuntimeError(f"the server ended with {self._process.wait()}: {self.lines}")

    def stop(self, number: int) -> int:
        """Send a signal, wait for the end, return the exit status."""
        self._process.send_signal(number)
        self.lines += self._process.communicate(timeout=30)[0].splitlines(keepends=True)
        return self._process.returncode

    def end(self) -> None:
        """Kill it where it still runs."""
        if self._process.poll() is None:
            self.stop(signal.SIGKILL)


def until(page, script: str, seconds: float = 30) -> None:
    """Wait until an expression is true.

    Playwright's own function evaluates strings in the page, which the page's content security policy forbids.
    """
    wait_for(script, lambda: page.evaluate(script), seconds, 0.01)


def next_shown(page, before: str | None = None) -> str:
    """Wait until a patch other than the last one is shown with its picture; return its name."""
    script = "(() => { const cell = document.querySelector('.patch.active'); return cell ? {...cell.dataset} : {} })()"

    def look() -> str | None:
        cell = page.evaluate(script)
        return cell["name"] if cell.get("shown") == "true" and cell["name"] != before else None

    return wait_for("a patch", look, 30, 0.005)


def stored(store: Store) -> tuple[dict[str, str], int]:
    """Read the current answers of `ann` by patch, and the number of all events."""
    log = LabelLog(store, "tiles")
    log.refresh()
    events = log.events()
    return {name: event.label for (who, name), event in current_labels(events).items() if who == "ann"}, len(events)


def test_two_hundred_patches_are_labelled_by_keyboard_while_the_server_is_killed_twice(local_store: Store, tmp_path: Path):
    if reason := browser.install():
        pytest.skip(reason)
    from playwright.sync_api import Error as PlaywrightError

    OUTPUT.mkdir(exist_ok=True)
    put_filtered(local_store, "tiles", tiles(260))
    server, words, expected = Server(local_store, tmp_path), {"g": "good", "b": "bad", "s": "skip"}, {}
    num_undone, name = 0, None
    address = server.start()
    try:
        with browser.open_page(1280, 900) as page:
            errors: list[str] = []
            page.on("dialog", lambda dialog: dialog.accept())  # the page asks back before waiting answers are left
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(address)
            for number in range(200):
                name = next_shown(page, name)
                key = "gbgs"[number % 4]
                page.keyboard.press(key)
                assert name not in expected, "no patch is shown twice"
                expected[name] = words[key]
                if number in (60, 130):
                    server.stop(signal.SIGKILL)  # with this answer, and maybe others, not yet acknowledged
                if number in (72, 145):
                    until(page, "document.getElementById('saving').dataset.waiting > 5")
                    assert "kept here and sent again" in page.locator("#alarm").text_content()
                    if number == 145:  # the browser loses the page as well; what waits lies in its storage
                        with pytest.raises(PlaywrightError, match="ERR_CONNECTION_REFUSED"):
                            page.reload()
                    assert server.start() == address, "the same address, so that the page left open goes on"
                    if number == 145:
                        page.goto(address)
                if number % 50 == 20:  # think again about the last one, once of them while the server is away
                    page.keyboard.press("u")
                    assert next_shown(page) == name
                    page.keyboard.press("b")
                    expected[name] = "bad"
                    num_undone += 1
            until(page, "document.getElementById('saving').dataset.waiting === '0'")
            until(page, "document.getElementById('barlabel').textContent.startsWith('150 of')")
            assert page.locator("#alarm").text_content() == ""
            found, num_events = stored(local_store)
            assert found == expected and len(found) == 200, "no label is lost, none is made up"
            assert num_events == 200 + 2 * num_undone, "every answer is one event, and each thought over three"
            page.keyboard.press("m")
            page.keyboard.press("+")
            for key in ("g", "b", "ArrowRight", "s", "ArrowDown", "b"):
                until(page, "!document.querySelector('.patch[data-shown=false]')")
                name = next_shown(page)
                page.keyboard.press(key)
                expected |= {name: words[key]} if key in words else {}
            until(page, "document.getElementById('saving').dataset.waiting === '0'")
            page.wait_for_timeout(2500)
            page.screenshot(path=str(OUTPUT / "labelling.png"))
            assert errors == []
        assert server.stop(signal.SIGINT) == 0
    finally:
        server.end()
    assert stored(local_store) == (expected, 204 + 2 * num_undone)
    table = read_labels(local_store)[0]
    assert Counter(table["label"]) == {key: num for key, num in Counter(expected.values()).items() if key != "skip"}
    assert sum(address in line for line in server.lines) == 3, "printed once by each server"


def test_two_browsers_and_the_keys_of_the_grid(shards: Store, tmp_path: Path):
    if reason := browser.install():
        pytest.skip(reason)
    server = Server(shards, tmp_path)
    address = server.start()
    try:
        with browser.open_page(1000, 800) as page:
            other = page.context.browser.new_context().new_page()
            for one in (page, other):
                one.goto(address)
                next_shown(one)
            other.locator("#annotator").fill("zoe")
            other.keyboard.press("Enter")
            next_shown(other)
            for one in (page, other):
                one.keyboard.press("m")
                until(one, "document.querySelectorAll('.patch[data-shown=true]').length === 9")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("b")
            page.keyboard.press("Shift+G")
            other.keyboard.press("Shift+G")
            page.keyboard.press("?")
            page.keyboard.press("g")  # the list of keys is open: no answer
            page.keyboard.press("Escape")
            page.keyboard.press("Enter")
            until(page, "document.querySelectorAll('.patch[data-shown=true]').length === 3")
            page.keyboard.press("u")  # the undone patch comes back to the grid
            until(page, "document.querySelectorAll('.patch').length === 4")
            for one in (page, other):
                until(one, "document.getElementById('saving').dataset.waiting === '0'")
            until(other, "document.getElementById('agreement').textContent.includes('8 patches')")
            assert "1 conflict(s)" in other.locator("#agreement").text_content()
            assert page.locator("#patches [role=gridcell][tabindex='0']").count() == 1
        assert server.stop(signal.SIGTERM) == -signal.SIGTERM
    finally:
        server.end()
    log = LabelLog(shards, "tiles")
    log.refresh()
    labels = Counter((annotator, event.label) for (annotator, _), event in current_labels(log.events()).items())
    assert labels == {("ann", "good"): 7, ("ann", "bad"): 1, ("zoe", "good"): 9}
    assert "8 good, 0 bad, 1 undecided" in "".join(server.lines), "SIGTERM writes the table as well"
