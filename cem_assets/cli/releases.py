"""Commands for releases: `cem-assets releases`, `cem-assets export ...`."""

import argparse
from pathlib import Path
from typing import Any

from cem_assets.cli.progress import StageBars
from cem_assets.errors import DataError

_SHOWN_NAMES = 5


def add_release_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `releases` and `export` to the command line."""
    releases = commands.add_parser("releases", help="list the releases, or the changes between two of them")
    releases.add_argument("first", nargs="?", help="version, such as v1")
    releases.add_argument("second", nargs="?", help="version to compare it with (default: the newest)")
    releases.set_defaults(run=_releases)

    export = commands.add_parser("export", help="write a release as folders of images, tar files or Parquet files")
    export.add_argument("what", choices=["cem", "cytoimagenet"])
    export.add_argument("target", metavar="DIR|URL", help="a new folder; for cem also a URL such as s3://bucket/prefix")
    export.add_argument("--release", default="", help="version, such as v1 (default: the newest)")
    export.add_argument("--format", choices=["tiff-tree", "webdataset", "hf"], help="format of cem (default: tiff-tree)")
    export.set_defaults(run=_export)


def _releases(call: Any) -> int:
    from cem_assets.cem.releases.changes import compare_releases
    from cem_assets.cem.releases.stage import list_releases
    from cem_assets.store.store import open_store

    store = open_store()
    found = list_releases(store)
    if call.first is None:
        for release in found:
            counts, day = release.counts, str(release.run["finished"])[:10]
            where = store.url_of(release.folder)
            print(
                f"{release.inputs.partition:8} {day}  {counts['datasets']:4} datasets  {counts['patches']:10,} patches  {where}"
            )
        return 0
    second = call.second or found[-1].inputs.partition if found else call.second or ""
    changes = compare_releases(store, call.first, second)
    print(f"{call.first} -> {second}: {len(changes)} dataset(s) differ")
    for change in changes:
        why = f"  ({'; '.join(change.reasons)})" if change.reasons else ""
        print(f"  {change.kind:8} {change.dataset}: {len(change.added):+,} / {-len(change.removed):+,} patches{why}")
        for mark, names in (("+", change.added), ("-", change.removed)):
            shown = names[:_SHOWN_NAMES]
            print("".join(f"      {mark} {name}\n" for name in shown), end="")
            if len(names) > len(shown):
                print(f"      {mark} and {len(names) - len(shown):,} more")
    return 0


def _export(call: Any) -> int:
    from cem_assets.cem.export.export import export_cem
    from cem_assets.cytoimagenet.releases.export import export_cytoimagenet
    from cem_assets.store.store import open_store

    if call.what == "cem":
        with StageBars() as bars:
            done = export_cem(
                open_store(),
                call.target,
                call.release,
                call.format or "tiff-tree",
                lambda done, total: bars("patches", "", done, total),
            )
        print(
            f"{done.num_patches:,} patches of release {done.version} in {done.url}: {done.num_files:,} files "
            f"({done.num_kept:,} were there), {done.num_bytes:,} bytes"
        )
        return 0
    if call.format:
        raise DataError("--format is for cem only; CytoImageNet is exported as a folder of PNG files. Leave it out.")
    with StageBars() as bars:
        num = export_cytoimagenet(
            open_store(), Path(call.target), call.release, lambda done, total: bars("images", "", done, total)
        )
    print(f"{num:,} images in {call.target}")
    return 0
