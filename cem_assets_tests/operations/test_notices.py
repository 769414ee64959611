"""Notices by webhook and e-mail arrive at real receivers on loopback; a channel that is down does not stop the other."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiosmtpd.controller import Controller

from cem_assets.operations.notices import deliver, is_configured


@pytest.fixture
def webhook(monkeypatch):
    received = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CEM_ASSETS_ALERT_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook/planted-secret")
    yield received
    server.shutdown()
    server.server_close()


@pytest.fixture
def mailbox(monkeypatch):
    received = []

    class Receiver:
        async def handle_DATA(self, server, session, envelope):
            received.append(envelope)
            return "250 OK"

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(Receiver(), hostname="127.0.0.1", port=port)
    controller.start()
    monkeypatch.setenv("CEM_ASSETS_ALERT_EMAIL", "night@example.org, day@example.org")
    for name, value in (("HOST", "127.0.0.1"), ("PORT", str(port)), ("FROM", "platform@example.org")):
        monkeypatch.setenv(f"CEM_ASSETS_SMTP_{name}", value)
    yield received
    controller.stop()


def test_notices_are_off_until_an_address_is_given():
    assert not is_configured() and deliver("s", "t", {}) == []


def test_a_notice_arrives_over_both_channels(webhook, mailbox):
    assert is_configured() and deliver("run failed\nfor x", "the file v.tif is empty", {"dataset": "vnc"}) == []
    (posted,) = webhook
    assert posted["text"] == "run failed\nfor x\nthe file v.tif is empty" and posted["dataset"] == "vnc"
    (mail,) = mailbox
    assert mail.rcpt_tos == ["night@example.org", "day@example.org"]
    text = mail.content.decode()
    assert "Subject: run failed for x" in text and "the file v.tif is empty" in text and "dataset: vnc" in text


def test_one_channel_that_is_down_is_told_without_its_address_and_keeps_nothing_back(mailbox, monkeypatch):
    monkeypatch.setenv("CEM_ASSETS_ALERT_WEBHOOK", "http://127.0.0.1:9/hook/planted-secret")
    (problem,) = deliver("s", "t", {})
    assert "webhook could not be delivered" in problem and "planted-secret" not in problem and "127.0.0.1" not in problem
    assert len(mailbox) == 1


@pytest.mark.parametrize("url", ["ftp://x", "not an address", "file:///etc/passwd"])
def test_senseless_addresses_are_refused(monkeypatch, url):
    monkeypatch.setenv("CEM_ASSETS_ALERT_WEBHOOK", url)
    (problem,) = deliver("s", "t", {})
    assert "webhook could not be delivered (DataError)" in problem


def test_a_server_that_does_not_speak_http_is_told_and_keeps_nothing_back(mailbox, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(b"what is this?\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv("CEM_ASSETS_ALERT_WEBHOOK", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        (problem,) = deliver("s", "t", {})
        thread.join()
    assert "webhook could not be delivered (BadStatusLine)" in problem and len(mailbox) == 1


def test_a_mistake_of_our_own_is_not_told_as_trouble_of_the_channel(monkeypatch):
    monkeypatch.setenv("CEM_ASSETS_ALERT_WEBHOOK", "http://127.0.0.1:9/")
    with pytest.raises(TypeError, match="not JSON serializable"):
        deliver("s", "t", {"run": object()})
