"""A real browser for the tests: Debian's Chromium, driven by Playwright; root installs it where it is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cem_assets_tests.services.packages import install_packages

PROGRAM = "chromium"


def install() -> str | None:
    """Install Chromium if it is missing; return why that is impossible, or None."""
    return None if shutil.which(PROGRAM) else install_packages("Chromium and what it needs are", PROGRAM)


@contextmanager
def open_page(width: int = 1600, height: int = 900) -> Iterator[Any]:
    """Open a page in a fresh browser that cannot reach any other host."""
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=shutil.which(PROGRAM), args=quiet)
        try:
            yield program.new_page(viewport={"width": width, "height": height})
        finally:
            program.close()
