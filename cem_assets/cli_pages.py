"""Commands that open a page of ours beside Dagster: `cem-assets label DATASET`."""

import argparse
import os
import sys
from typing import Any


def add_page_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `label` to the command line."""
    label = commands.add_parser("label", help="open a local page on which patches are labelled good or bad, by keyboard")
    label.add_argument("dataset")
    label.add_argument("--annotator", default="", help="your name, recorded with every answer (default: the login name)")
    label.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: that of the last session, or any)")
    label.add_argument("--by", choices=["uncertainty", "random"], default="uncertainty", help="which patches come first")
    label.add_argument("--no-browser", action="store_true", help="only print the address")
    label.set_defaults(run=_label)


def _label(call: Any) -> int:
    import getpass

    from cem_assets.storage.store import open_store
    from cem_assets.web.next_patches import Order
    from cem_assets.web.serving import serve_labelling

    has_screen = sys.stdout.isatty() and (sys.platform == "darwin" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)))
    serve_labelling(
        open_store(),
        call.dataset,
        call.annotator or getpass.getuser(),
        lambda line: print(line, flush=True),
        call.port,
        Order(call.by),
        has_screen and not call.no_browser,
    )
    return 0
