"""Commands for patch classifiers: `cem-assets classifier`, `cem-assets classifier use DIGEST`."""

import argparse
import sys
from typing import Any


def add_classifier_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `classifier` to the command line."""
    classifier = commands.add_parser("classifier", help="list patch classifiers; choose the one that makes new scores")
    classifier.set_defaults(run=_list)
    actions = classifier.add_subparsers(metavar="ACTION")
    use = actions.add_parser("use", help="make new scores with this classifier from now on; the choice is kept")
    use.add_argument("digest", help='the first 8 or more digits of its digest, or "newest"')
    use.add_argument("--reason", default="", help="reason of the choice, which is kept with it")
    use.add_argument("--by", default="", help="name of the person who chooses (default: the login name)")
    use.set_defaults(run=_use)


def _list(call: Any) -> int:
    from cem_assets.cem.classifier.stored import known_classifiers, read_choices
    from cem_assets.store.store import open_store

    del call
    store = open_store()
    known = known_classifiers(store)
    if not known:
        print(f"{store.url} has no patch classifier yet; materialize cem/patch_classifier.")
        return 0
    for item in known:
        manifest, measures = item.manifest, item.manifest.details.get("evaluation")
        told = [f"made {str(manifest.run['finished'])[:16]}", f"from {manifest.details['provenance']['source']}"]
        if measures:
            auc = measures["auc"]
            told += [f"AUC {auc:.3f}" if auc is not None else "AUC unknown", f"accuracy {measures['accuracy']:.3f}"]
            told.append(f"{manifest.counts['labelled']:,} labels")
        if not item.is_there:
            told.append("swept")
        print(f"{'in use ' if item.is_in_use else '       '} {manifest.digest[:12]}  {', '.join(told)}")
    for choice in read_choices(store):
        why = f": {choice.reason}" if choice.reason else ""
        print(f"{choice.time[:16]}  {choice.digest[:12]} chosen by {choice.by}{why}")
    return 0


def _use(call: Any) -> int:
    import getpass

    from cem_assets.cem.classifier.stored import find_classifier
    from cem_assets.cli.runs import failures, open_instance, run_job
    from cem_assets.store.store import open_store

    store = open_store()
    found = find_classifier(store, call.digest)  # a wrong digest is refused before a run starts
    digest = found.manifest.digest
    config = {"digest": digest, "reason": call.reason, "by": call.by or getpass.getuser()}
    with open_instance() as instance:  # in a run, so that the UI shows it
        result = run_job(instance, store.url, "cem_choose_classifier", config={"choose_patch_classifier": config})
    if not result.success:
        print("\n".join(f"failed: {problem}" for problem in failures(result)), file=sys.stderr)
        return 1
    print(f"new scores are made with classifier {digest[:12]}" + (", as before" if found.is_in_use else ""))
    if not found.is_in_use:
        print("scores that are there stay; with relaunch_gpu = true in settings/cem.toml they are computed again")
    return 0
