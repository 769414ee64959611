"""Serves the labelling page and the explorer on a port of this machine only, at an address that stays the same.

A server that was killed comes back at the same address, so that open pages can send the answers that they still hold and links
keep working. The applications themselves are `cem_assets.web.labelling` and `cem_assets.web.explorer`.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from cem_assets.cem.classifier.answers import check_annotator, write_label_table
from cem_assets.cem.page_links import DOOR_PORT
from cem_assets.store.store import Store
from cem_assets.web.column_cache import DEFAULT_BYTES
from cem_assets.web.explorer import Explorer, explorer_app
from cem_assets.web.labelling import LabellingSession, labelling_app
from cem_assets.web.next_patches import Order
from cem_assets.web.volume_links import VolumeLinks, check_origin

logger = logging.getLogger(__name__)

ADDRESSES = Path(".cem_assets/labelling")
EXPLORER = Path(".cem_assets/explorer")
HOST = "127.0.0.1"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


@dataclass(frozen=True)
class Address:
    """The address of a page: the port, and the secret part of its path."""

    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/{self.token}/"


def address_file(folder: Path, store: Store, dataset: str) -> Path:
    """Return the file that remembers the address of a dataset's page; only its owner can read it."""
    return folder / f"{hashlib.sha256(f'{store.url} {dataset}'.encode()).hexdigest()[:16]}.json"


def remembered_address(path: Path) -> Address | None:
    """Read a remembered address; None where there is none, or where others could have read it."""
    try:
        if path.stat().st_mode & 0o077 or path.stat().st_size > 1024:
            return None
        content = json.loads(path.read_bytes())
        port, token = content["port"], content["token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(port, int) or not 0 < port < 1 << 16 or not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return None
    return Address(port, token)


def remember_address(path: Path, address: Address) -> None:
    """Remember an address for the next start, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = path.with_suffix(f".{os.getpid()}")
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        json.dump({"port": address.port, "token": address.token}, handle)
    staged.replace(path)


def open_port(port: int) -> socket.socket:
    """Bind a port of the loopback interface; 0 takes any free one.

    Raises:
        OSError: The port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"port {port} of {HOST} cannot be opened: {error.strerror}. Give another --port") from error
    return listener


def serve_labelling(
    store: Store,
    dataset: str,
    annotator: str,
    say: Callable[[str], None],
    port: int = 0,
    order: Order = Order.uncertainty,
    is_browser_opened: bool = False,
    folder: Path = ADDRESSES,
) -> None:
    """Serve the labelling page of a dataset until Ctrl-C; then, and at the start, write its label table.

    Args:
        annotator: Name that is proposed to whoever opens the page; people can enter another one there.
        say: Takes lines for the person at the terminal; the address, which holds the secret, only once.
        port: Port of 127.0.0.1; 0 takes the port of the last session, else the one in the links of asset metadata, else any
            free one.
        order: Whether the patches of which the classifier is least sure come first, or random ones.
        is_browser_opened: Whether to open the page in the default browser.
        folder: Folder in which addresses are remembered.

    Raises:
        FileNotFoundError: The dataset has no patches.
        DataError: The annotator's name is not allowed, or label events cannot be read.
        OSError: The port is taken.
    """
    check_annotator(annotator)
    session = LabellingSession(store, dataset, order)
    if written := write_label_table(store, dataset):  # the last session may have been killed before it could
        say(f"so far: {written.lines()[0]}")
    address, listener = _take_address(address_file(folder, store, dataset), port, say, DOOR_PORT)

    def tell(lines: list[str]) -> None:
        for line in lines:
            say(line)

    app = labelling_app(session, address.token, annotator, tell)
    say(f"labelling {dataset} ({session.candidates.num_patches:,} patches, {session.candidates.order} order). Open:")
    say(address.url)
    say("Ctrl-C ends the session and writes the label table; answers are kept as they are given.")
    _run(app, listener, address.url if is_browser_opened else "")


def serve_explorer(
    store: Store,
    say: Callable[[str], None],
    port: int = 0,
    is_browser_opened: bool = False,
    neuroglancer: str = "",
    cache_bytes: int = DEFAULT_BYTES,
    folder: Path = EXPLORER,
) -> None:
    """Serve the explorer of a store until Ctrl-C.

    Args:
        say: Takes lines for the person at the terminal; the address, which holds the secret, only once.
        port: Port of 127.0.0.1; 0 takes the port of the last session, else any free one.
        is_browser_opened: Whether to open the page in the default browser.
        neuroglancer: Address of a neuroglancer that may read volumes through this port; empty allows none.
        cache_bytes: Size of local copies of columns.
        folder: Folder of those copies and of remembered addresses.

    Raises:
        DataError: `neuroglancer` is not an address.
        OSError: The port is taken, or the folder cannot be written.
    """
    origin = check_origin(neuroglancer) if neuroglancer else ""
    address, listener = _take_address(address_file(folder, store, "explorer"), port, say)
    volume_token = secrets.token_urlsafe(32) if neuroglancer else ""
    served = f"http://{HOST}:{address.port}/{volume_token}/" if neuroglancer else ""
    links = VolumeLinks(store.url, neuroglancer.rstrip("/"), served)
    app = explorer_app(Explorer(store, folder / "columns", cache_bytes, links), address.token, volume_token, origin)
    say(f"exploring {store.url}. Open:")
    say(address.url)
    if origin:
        say(f"volumes, and nothing else, may be read by pages of {origin} that have a link from here")
    say("Ctrl-C ends the session.")
    _run(app, listener, address.url if is_browser_opened else "")


def _take_address(path: Path, port: int, say: Callable[[str], None], first_port: int = 0) -> tuple[Address, socket.socket]:
    """Open the port of the last session, else `first_port`, else a free one, and remember it with its secret."""
    known = remembered_address(path)
    try:
        listener = open_port(port or (known.port if known else first_port))
    except OSError:
        if port:
            raise
        if known:
            say("the address of the last session is in use; this one has another")
        known, listener = None, open_port(0)  # the port is in use, for example by another session of the same page
    address = Address(listener.getsockname()[1], known.token if known else secrets.token_urlsafe(32))
    if remembered_address(path) is None or known:
        try:
            remember_address(path, address)
        except OSError as error:
            logger.warning("the address cannot be remembered (%s): a restarted server will have another one", error)
    return address, listener


def _run(app: Starlette, listener: socket.socket, url: str) -> None:
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, timeout_graceful_shutdown=5, limit_concurrency=64
    )
    if url:
        webbrowser.open(url)
    with listener, suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        uvicorn.Server(config).run(sockets=[listener])
