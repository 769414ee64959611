"""Stage `benchmarks/promotions`: whether weights become champion. Every verdict is recorded for good, and MLflow is informed.

`cem_assets.benchmarks.leaderboard.gate` has the rule. There is one champion for each architecture (`resnet50`,
`efficientnet_b0`, ...), so whoever loads a champion gets the network they expect. Records are numbered and never change; the
newest record of an architecture that promoted its candidate names the champion. MLflow shows the same: the registered model
that is named after the weights has the tag `champion` with the architecture, and its version whose tag `digest` is that of the
weights' manifest has the alias `champion`.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cem_assets.benchmarks.leaderboard.card import promotion_card
from cem_assets.benchmarks.leaderboard.gate import GateRule, PromotionVerdict, judge_promotion
from cem_assets.benchmarks.leaderboard.stored import CARD, VERDICT
from cem_assets.benchmarks.rows import known_benchmarks
from cem_assets.benchmarks.scores.stored import read_score_rows, score_keys
from cem_assets.errors import DataError
from cem_assets.execution.checks import Outcome
from cem_assets.execution.stage import StageResult
from cem_assets.pretraining.weights.stored import CARD as WEIGHTS_CARD
from cem_assets.pretraining.weights.stored import SIDECAR
from cem_assets.store.assets import BENCHMARK_SCORES, CODE_VERSIONS, PROMOTIONS, WEIGHTS
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import (
    Inputs,
    Manifest,
    committed_partitions,
    find_manifest,
    manifest_numbers,
    read_manifest,
    require_manifest,
)
from cem_assets.store.store import Store
from cem_assets.tracking.runs import open_tracked_run

ALIAS = "champion"
_WAIT_S = 10.0
"""How long a promotion waits for MLflow; whatever is not delivered by then stays in the outbox and is delivered later."""
_RUN = ["benchmark", "parameters", "seed"]
_MAX_REASON = 2000


@dataclass(frozen=True)
class PromotionRecord:
    """One verdict.

    Attributes:
        name: Number of the record with leading zeros.
        weights: Name of the candidate.
        digest: Digest of the candidate's manifest.
        family: Architecture of the network.
        is_promoted: Whether the candidate became champion.
        is_overridden: Whether it became champion against the rule.
        reason: The reason that a person gave; may be empty.
        summary: The verdict in words.
        champion: The champion that it was judged against; empty for the first.
        manifest: Manifest of the record.
    """

    name: str
    weights: str
    digest: str
    family: str
    is_promoted: bool
    is_overridden: bool
    reason: str
    summary: str
    champion: str
    manifest: Manifest


@dataclass(frozen=True)
class _Case:
    """Everything that a verdict is based on."""

    manifest: Manifest
    family: str
    champion: PromotionRecord | None
    rules: dict[str, GateRule]
    candidate_scores: pd.DataFrame
    champion_scores: pd.DataFrame | None


def promotion_records(store: Store) -> list[PromotionRecord]:
    """Read all verdicts, oldest first."""
    names = sorted((name for name in committed_partitions(store, PROMOTIONS) if name.isdecimal()), key=int)
    return [_record(require_manifest(store, PROMOTIONS, name)) for name in names]


def champion_in(records: Sequence[PromotionRecord], family: str) -> PromotionRecord | None:
    """Find the record that made the current champion of an architecture, such as "resnet50"; None if there is no champion.

    Args:
        records: From `promotion_records`.
    """
    return next((item for item in reversed(records) if item.is_promoted and item.family == family), None)


def _record(manifest: Manifest) -> PromotionRecord:
    about, verdict = manifest.details, manifest.details["verdict"]
    return PromotionRecord(
        manifest.inputs.partition,
        about["weights"],
        about["weights_digest"],
        about["family"],
        verdict["is_promoted"],
        verdict["is_overridden"],
        verdict["reason"],
        verdict["summary"],
        about["champion"],
        manifest,
    )


def promote(store: Store, weights: str, reason: str = "", run_id: str = "") -> StageResult:
    """Make weights champion if they pass the gate, and record the verdict in either case.

    Args:
        weights: Name of the weights; the current ones in the store are judged.
        reason: Overrides the gate if it is not blank, and is recorded.

    Returns:
        The record in `benchmarks/promotions`, with `verdict.json` and `README.md`. It is not new if the weights are champion
        already, or if the newest verdict on their architecture is based on exactly the same. MLflow is informed whenever the
        weights are champion; while it cannot be reached the message waits in the outbox.

    Raises:
        FileNotFoundError: The weights are not in the store.
        DataError: The reason is too long, scores cannot be compared, or the store's settings of benchmarks are not valid.
    """
    started = time.monotonic()
    reason = reason.strip()
    if len(reason) > _MAX_REASON:
        raise DataError(f"the reason has {len(reason):,} characters; expected at most {_MAX_REASON:,}. Shorten it.")
    manifest = _candidate(store, weights)
    while True:
        records = promotion_records(store)
        champion = champion_in(records, str(manifest.details["arch"]))
        if champion is not None and (champion.weights, champion.digest) == (weights, manifest.digest):
            _tell_mlflow(store, champion)
            return StageResult(champion.manifest, False, time.monotonic() - started)
        case = _case(store, manifest, champion)
        upstream, parameters = _upstream(case), _parameters(case, reason)
        newest = next((item for item in reversed(records) if item.family == case.family), None)
        if newest is not None and _rests_on(newest, upstream, parameters):
            return StageResult(newest.manifest, False, time.monotonic() - started)
        name = f"{(int(records[-1].name) if records else 0) + 1:04d}"
        inputs = Inputs(PROMOTIONS, name, CODE_VERSIONS[PROMOTIONS], parameters, upstream)
        verdict = judge_promotion(case.candidate_scores, case.champion_scores, case.rules, reason)
        try:
            record = _record(_commit(store, inputs, run_id, case, verdict))
        except FileExistsError:  # another verdict came first, so there may be another champion to be judged against
            continue
        if record.is_promoted:
            _tell_mlflow(store, record)
        return StageResult(record.manifest, True, time.monotonic() - started)


def _candidate(store: Store, weights: str) -> Manifest:
    if "+" in weights:
        raise DataError(f"{weights!r} are fused features of several weights; expected one name. Promote one of them.")
    return require_manifest(store, WEIGHTS, weights)


def _case(store: Store, manifest: Manifest, champion: PromotionRecord | None) -> _Case:
    rules = {name: GateRule(row.is_gated, row.tolerance) for name, row in known_benchmarks(store).items()}
    mine = _scores_of(store, manifest.inputs.partition, manifest.digest)
    its = None if champion is None else _champion_scores(store, champion)
    return _Case(manifest, str(manifest.details["arch"]), champion, rules, mine, its)


def _scores_of(store: Store, weights: str, digest: str) -> pd.DataFrame:
    """Read the main scores of weights with a digest, including those that scores of later weights of the name replaced."""
    frames = [pd.DataFrame(columns=[*_COLUMNS, "run_digest"])]
    for key in score_keys(store, weights=weights):
        folder = f"{BENCHMARK_SCORES}/{key.partition}"
        for number in reversed(manifest_numbers(store, folder)):
            manifest = read_manifest(store, folder, number)
            try:
                rows = read_score_rows(store, manifest)
            except FileNotFoundError:  # deleted since it was replaced; the record of the promotion holds these rows
                continue
            rows = rows[(rows["weights_digest"] == digest) & rows["is_main"]]
            if len(rows):
                frames.append(rows.assign(run_digest=manifest.digest)[frames[0].columns])
                break
    found: pd.DataFrame = pd.concat(frames if len(frames) == 1 else frames[1:], ignore_index=True)
    return found


_COLUMNS = [
    *("benchmark", "weights", "weights_digest", "release", "release_digest", "seed", "parameters", "finetune_layer"),
    *("iterations", "test_set", "metric", "value", "low", "high", "num", "is_main", "code_version"),
]


def _champion_scores(store: Store, champion: PromotionRecord) -> pd.DataFrame:
    """Read a champion's scores from the store, and those that are no longer there from the record of its promotion."""
    there = _scores_of(store, champion.weights, champion.digest)
    recorded = pd.DataFrame(champion.manifest.details["scores"], columns=[*_COLUMNS, "run_digest"])
    known = {tuple(row) for row in there[_RUN].itertuples(index=False)}
    is_gone = [tuple(row) not in known for row in recorded[_RUN].itertuples(index=False)]
    parts = [part for part in (there, recorded[is_gone]) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else there


def _upstream(case: _Case) -> dict[str, str]:
    found = {f"{WEIGHTS}/{case.manifest.inputs.partition}": case.manifest.digest}
    if case.champion is not None:
        found[f"{PROMOTIONS}/{case.champion.name}"] = case.champion.manifest.digest
    for who, scores in (("candidate", case.candidate_scores), ("champion", case.champion_scores)):
        if scores is not None:
            runs = scores.drop_duplicates([*_RUN, "run_digest"])
            found |= {
                f"{who}: {BENCHMARK_SCORES}/{row.benchmark}/{row.weights}/{row.parameters}-s{row.seed}": str(row.run_digest)
                for row in runs.itertuples()
            }
    return found


def _parameters(case: _Case, reason: str) -> dict[str, Any]:
    rules = {name: [rule.is_gated, rule.tolerance] for name, rule in sorted(case.rules.items())}
    return {"family": case.family, "reason": reason, "rules": rules}


def _rests_on(record: PromotionRecord, upstream: dict[str, str], parameters: dict[str, Any]) -> bool:
    inputs = record.manifest.inputs
    is_method = inputs.code_version == CODE_VERSIONS[PROMOTIONS]
    return is_method and dict(inputs.upstream) == upstream and dict(inputs.parameters) == parameters


def _commit(store: Store, inputs: Inputs, run_id: str, case: _Case, verdict: PromotionVerdict) -> Manifest:
    commit = Commit(store, inputs, run_id)
    weights, digest = case.manifest.inputs.partition, case.manifest.digest
    champion = "" if case.champion is None else case.champion.weights
    details: dict[str, Any] = {
        "weights": weights,
        "weights_digest": digest,
        "family": case.family,
        "champion": champion,
        "champion_digest": "" if case.champion is None else case.champion.digest,
        "verdict": {
            "decision": verdict.decision,
            "is_promoted": verdict.is_promoted,
            "is_overridden": verdict.is_overridden,
            "reason": verdict.reason,
            "summary": verdict.summary,
            "missing": dict(verdict.missing),
            "table": _rows(verdict.table),
        },
        # If this candidate becomes champion, it is judged by these later, when weights of its name have replaced its scores.
        "scores": _rows(case.candidate_scores),
    }
    commit.write(VERDICT, (json.dumps(details, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    card = promotion_card(inputs.partition, weights, digest, case.family, champion, verdict)
    commit.write(CARD, card.encode())
    compared = int(verdict.table["change"].notna().sum())
    counts = {
        "compared": compared,
        "missing": len(verdict.missing),
        "promoted": int(verdict.is_promoted),
        "overridden": int(verdict.is_overridden),
    }
    return commit.finish(counts, details, is_final=True)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON values; missing numbers become None."""
    found: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return found


def _tell_mlflow(store: Store, record: PromotionRecord) -> None:
    """Move the alias, through the outbox, in one tracked run for each architecture, so that the newest champion wins.

    Imported weights have no version in MLflow, and that of trained weights may not have been delivered yet. So a version is
    made of the card and the sidecar, which name the weights by their place and digest, unless there is one already.
    """
    weights = find_manifest(store, WEIGHTS, record.weights, record.digest)
    key = hashlib.sha256(f"{PROMOTIONS} {record.family}".encode()).hexdigest()
    told = {
        ALIAS: record.weights,
        "digest": record.digest,
        "promotion": record.name,
        "is_overridden": str(record.is_overridden),
    }
    with open_tracked_run(store, key, PROMOTIONS, f"{ALIAS} {record.family}", {}, told) as run:
        for name in (VERDICT, CARD):
            run.log_artifact(f"promotions/{record.name}/{name}", store.read(f"{record.manifest.folder}/{name}"))
        card = store.read(f"{weights.folder}/{WEIGHTS_CARD}")
        folder = f"models/{record.digest[:16]}"
        run.log_artifact(f"{folder}/{WEIGHTS_CARD}", card)
        run.log_artifact(f"{folder}/{SIDECAR}", store.read(f"{weights.folder}/{SIDECAR}"))
        release = weights.details.get("provenance", {}).get("release", {})
        made_from = {"release": release["asset"], "release_digest": release["digest"]} if release else {}
        tags = {"digest": record.digest, "weights": store.url_of(weights.folder), **made_from}
        run.register_model(record.weights, folder, tags, card.decode()[:4000])
        run.set_alias(record.weights, record.digest, ALIAS, record.family)
        run.finish("FINISHED")
        run.close(_WAIT_S)


def gate_passes(store: Store, _: str = "") -> Outcome:
    """The newest candidate became champion: no gated benchmark fell by more than its tolerance, or a person said why."""
    records = promotion_records(store)
    if not records:
        return Outcome(False, f"no weights were put forward yet; materialize {PROMOTIONS} with the name of weights.")
    newest = records[-1]
    verdict = newest.manifest.details["verdict"]
    champion = champion_in(records, newest.family)
    facts: dict[str, Any] = {
        "weights": newest.weights,
        "family": newest.family,
        "decision": verdict["decision"],
        "overridden": newest.is_overridden,
        "champion": champion.weights if champion else "none",
        **{name: newest.manifest.counts[name] for name in ("compared", "missing")},
    }
    remedy = "" if newest.is_promoted else f" The champion stays {facts['champion']}. Give a reason to promote all the same."
    return Outcome(newest.is_promoted, f"{newest.weights}: {newest.summary}{remedy}", facts)
