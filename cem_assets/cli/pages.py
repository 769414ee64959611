"""Commands that open our own local pages: `cem-assets label DATASET`, `cem-assets explore`."""

import argparse
import os
import sys
from typing import Any


def add_page_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `label` and `explore` to the command line."""
    label = commands.add_parser("label", help="open a local page for labelling patches good or bad by keyboard")
    label.add_argument("dataset")
    label.add_argument("--annotator", default="", help="your name, recorded with every answer (default: the login name)")
    label.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: that of the last session, or any)")
    label.add_argument("--by", choices=["uncertainty", "random"], default="uncertainty", help="order of the patches")
    label.add_argument("--no-browser", action="store_true", help="only print the address")
    label.set_defaults(run=_label)

    explore = commands.add_parser("explore", help="open a local page that shows patches, crops and volumes of any stage")
    explore.add_argument("--port", type=int, default=0, help="port of 127.0.0.1 (default: that of the last session, or any)")
    explore.add_argument(
        "--neuroglancer",
        nargs="?",
        const="https://neuroglancer-demo.appspot.com",
        default="",
        metavar="URL",
        help="link volumes to this neuroglancer (default: the public one), which may then read them through this port",
    )
    explore.add_argument("--cache-gib", type=float, default=4.0, help="size of local copies of tables' columns (default: 4)")
    explore.add_argument("--no-browser", action="store_true", help="only print the address")
    explore.set_defaults(run=_explore)


def _label(call: Any) -> int:
    import getpass

    from cem_assets.store.store import open_store
    from cem_assets.web.next_patches import Order
    from cem_assets.web.serving import serve_labelling

    serve_labelling(
        open_store(),
        call.dataset,
        call.annotator or getpass.getuser(),
        lambda line: print(line, flush=True),
        call.port,
        Order(call.by),
        _has_screen() and not call.no_browser,
    )
    return 0


def _explore(call: Any) -> int:
    from cem_assets.store.store import open_store
    from cem_assets.web.serving import serve_explorer

    serve_explorer(
        open_store(),
        lambda line: print(line, flush=True),
        call.port,
        _has_screen() and not call.no_browser,
        call.neuroglancer,
        int(call.cache_gib * 2**30),
    )
    return 0


def _has_screen() -> bool:
    is_there = sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
    return sys.stdout.isatty() and is_there
