"""Commands that analyse encoder weights: `cem-assets analyse ...`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from cem_assets.cli.progress import StageBars

_TOLD = {
    "invariance": "mean firing rate under rotation, blur, noise, brightness, contrast and scale",
    "occlusion": "parts of an image that the features depend on",
    "masks": "correlation of feature maps with masks of organelles",
    "umap": "maps of datasets as clouds of points",
    "frechet": "distances between datasets",
}


def add_analysis_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `analyse` to the command line."""
    analyse = commands.add_parser("analyse", help="analyse weights: invariance, occlusion, organelles, datasets")
    analyse.set_defaults(run=_list)
    kinds = analyse.add_subparsers(metavar="ANALYSIS")
    for name, told in _TOLD.items():
        kind = kinds.add_parser(name, help=told)
        kind.add_argument("weights", nargs="+", metavar="WEIGHTS", help="names of weights; several are compared in one figure")
        kind.add_argument(
            "--folder", default="", help="folder of pictures" + (": images/ and masks/" if name == "masks" else "")
        )
        if name != "masks":
            kind.add_argument("--dataset", nargs="+", default=[], metavar="DATASET", help="use filtered patches of datasets")
            kind.add_argument("--release", default="", help="use patches of a release (default: the newest)")
            each = " of each dataset" if name in ("umap", "frechet") else ""
            kind.add_argument("--images", type=int, metavar="N", help=f"number of images{each}")
            kind.add_argument("--image-seed", type=int, metavar="SEED", help="seed of the draw of images")
        kind.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method")
        kind.add_argument("--device", default="auto")
        kind.set_defaults(run=_analyse, analysis=name)


def _list(call: Any) -> int:
    from cem_assets.cli.analysis_runs import list_lines
    from cem_assets.store.store import open_store

    del call
    print("\n".join(list_lines(open_store())))
    return 0


def _analyse(call: Any) -> int:
    from cem_assets.cli.analysis_runs import analyse_all
    from cem_assets.cli.weights_runs import parsed_settings
    from cem_assets.store.store import open_store

    config: dict[str, Any] = {**parsed_settings(call.set), "device": call.device}
    if call.folder:
        # A folder of this machine gets an absolute path; any other name is a folder of the store.
        config["folder"] = str(Path(call.folder).resolve()) if Path(call.folder).is_dir() else call.folder
    if call.analysis != "masks":
        config |= {"datasets": call.dataset, "release": call.release}
        config |= {"num_images": call.images} if call.images is not None else {}
        config |= {"image_seed": call.image_seed} if call.image_seed is not None else {}
    has_failed = False
    with StageBars() as bars:
        for lines, problems in analyse_all(open_store(), call.analysis, call.weights, config, bars):
            bars.close()
            if lines:
                print("\n".join(lines), flush=True)
            for problem in problems:
                has_failed = True
                print(f"failed: {problem}", file=sys.stderr)
    return 1 if has_failed else 0
