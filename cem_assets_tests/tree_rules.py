"""Rules for the files of this repository that no linter has; `make check` checks them.

Modules have at most 400 lines and a docstring that says what is in them, and no module has a meaningless name. No tracked file
names a package registry's host or a folder of one machine.
"""

import re
import subprocess
import sys
from pathlib import Path

MAX_LINES = 400
MEANINGLESS = {"core", "utils", "util", "helpers", "helper", "manager", "misc"}
_HOSTS = re.compile(r"py" r"pi\.org|python" r"hosted\.|npm" r"js\.org|deb\.deb" r"ian\.")
_MACHINE = re.compile(r"(^|[^A-Za-z0-9_.])/(work|root/\.)")


def problems(root: Path) -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True
    )
    found = []
    for name in listing.stdout.splitlines():
        path = root / name
        if not path.is_file():
            continue
        data = path.read_bytes()
        if len(data) > 1 << 20:
            found.append(f"{name} has {len(data)} bytes; the tree holds sources, not data")
        if b"\0" in data:
            continue
        text = data.decode()
        if _HOSTS.search(text):
            found.append(f"{name} names a package registry's host")
        if path.suffix != ".md" and _MACHINE.search(text):
            found.append(f"{name} names a folder of one machine")
        if path.suffix == ".py":
            lines = text.count("\n")
            if lines > MAX_LINES and not name.startswith("cem_assets_tests/"):
                found.append(f"{name} has {lines} lines; expected at most {MAX_LINES}")
            if path.stem in MEANINGLESS:
                found.append(f"{name} has a name that says nothing")
            if text.strip() and not text.lstrip().startswith(('"""', "#!")):
                found.append(f"{name} does not say what lives in it")
    return found


if __name__ == "__main__":
    report = problems(Path(__file__).resolve().parents[1])
    for line in report:
        print(line)
    sys.exit(1 if report else 0)
