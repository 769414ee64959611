"""Stage `benchmarks/promotions`: whether weights become champion, recorded for ever, and told to MLflow.

The rule is `cem_assets.benchmarks.leaderboard.gate`. There is one champion for each network (`resnet50`, `efficientnet_b0`,
...):
who loads the champion gets the network expected. Records are numbered and never change; the newest one of a network
that promoted says who is champion. MLflow mirrors it: alias `champion` on the version of the registered model named after
the weights whose tag `digest` is that of their manifest, and tag `champion` with the network on that model.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cem_assets.benchmarks.data.rows import known_benchmarks
from cem_assets.benchmarks.leaderboard.card import promotion_card
from cem_assets.benchmarks.leaderboard.gate import GateRule, PromotionVerdict, judge_promotion
from cem_assets.benchmarks.leaderboard.stored import CARD, VERDICT
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
"""How long a promotion waits for MLflow; what it did not take by then is in the outbox."""
_RUN = ["benchmark", "parameters", "seed"]
_MAX_REASON = 2000


@dataclass(frozen=True)
class PromotionRecord:
    """One verdict.

    Attributes:
        name: Of the record, its number with leading zeros.
        weights: The candidate.
        digest: Of the candidate's manifest.
        family: Network.
        is_promoted: Whether it became champion.
        is_overridden: Whether it did against the rule.
        reason: A person's.
        summary: The verdict in words.
        champion: Whom it was judged against; empty for the first.
        manifest: Of the record.
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
    """All that a verdict rests on."""

    manifest: Manifest
    family: str
    champion: PromotionRecord | None
    rules: dict[str, GateRule]
    candidate_scores: pd.DataFrame
    champion_scores: pd.DataFrame | None


def promotion_records(store: Store) -> list[PromotionRecord]:
    """List all verdicts, oldest first."""
    names = sorted((name for name in committed_partitions(store, PROMOTIONS) if name.isdecimal()), key=int)
    return [_record(require_manifest(store, PROMOTIONS, name)) for name in names]


def current_champion(store: Store, family: str = "") -> PromotionRecord | None:
    """Find who is champion.

    Args:
        family: Network, such as "resnet50"; empty takes whoever became champion last, of any.

    Returns:
        The record that made them champion; None where there is no champion.
    """
    return _champion_in(promotion_records(store), family)


def _champion_in(records: list[PromotionRecord], family: str) -> PromotionRecord | None:
    return next((item for item in reversed(records) if item.is_promoted and family in ("", item.family)), None)


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


def judge_weights(store: Store, weights: str, reason: str = "") -> PromotionVerdict:
    """Say what the gate would say of weights, without recording or promoting.

    Args:
        weights: Their name.
        reason: As for `promote`.

    Raises:
        FileNotFoundError: The weights are not in the store.
        DataError: As for `promote`.
    """
    manifest = _candidate(store, weights)
    champion = _champion_in(promotion_records(store), str(manifest.details["arch"]))
    return _judged(_case(store, manifest, champion), reason)


def promote(store: Store, weights: str, reason: str = "", run_id: str = "") -> StageResult:
    """Make weights champion, if the gate lets them.

    Args:
        weights: Their name; what is current in the store is judged.
        reason: Overrides the gate where it is not blank, and is recorded.

    Returns:
        The verdict's record in `benchmarks/promotions`, whether it promotes or not: `verdict.json` and `README.md`; not new
        where the weights are champion already, or the newest verdict of their network rests on the very same. MLflow is told
        in any case of a champion; while it is down that waits in the outbox.

    Raises:
        FileNotFoundError: The weights are not in the store.
        DataError: The reason is too long, or scores or the store's benchmarks have problems.
    """
    started = time.monotonic()
    reason = reason.strip()
    if len(reason) > _MAX_REASON:
        raise DataError(f"the reason has {len(reason):,} characters; expected at most {_MAX_REASON:,}. Shorten it.")
    manifest = _candidate(store, weights)
    while True:
        records = promotion_records(store)
        champion = _champion_in(records, str(manifest.details["arch"]))
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
        try:
            record = _record(_commit(store, inputs, run_id, case, _judged(case, reason)))
        except FileExistsError:  # another verdict came first: there may be another champion to be judged against
            continue
        if record.is_promoted:
            _tell_mlflow(store, record)
        return StageResult(record.manifest, True, time.monotonic() - started)


def _candidate(store: Store, weights: str) -> Manifest:
    if "+" in weights:
        raise DataError(f"{weights!r} are fused features of several weights; expected the name of one. Promote one of them.")
    return require_manifest(store, WEIGHTS, weights)


def _case(store: Store, manifest: Manifest, champion: PromotionRecord | None) -> _Case:
    rules = {name: GateRule(row.is_gated, row.tolerance) for name, row in known_benchmarks(store).items()}
    mine = _scores_of(store, manifest.inputs.partition, manifest.digest)
    its = None if champion is None else _champion_scores(store, champion)
    return _Case(manifest, str(manifest.details["arch"]), champion, rules, mine, its)


def _judged(case: _Case, reason: str) -> PromotionVerdict:
    return judge_promotion(case.candidate_scores, case.champion_scores, case.rules, reason)


def _scores_of(store: Store, weights: str, digest: str) -> pd.DataFrame:
    """Read the main scores of weights with a digest, also such as were replaced by those of later weights of the name."""
    frames = [pd.DataFrame(columns=[*_COLUMNS, "run_digest"])]
    for key in score_keys(store, weights=weights):
        folder = f"{BENCHMARK_SCORES}/{key.partition}"
        for number in reversed(manifest_numbers(store, folder)):
            manifest = read_manifest(store, folder, number)
            try:
                rows = read_score_rows(store, manifest)
            except FileNotFoundError:  # swept since it was replaced; the record of the promotion has these rows
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
    """Read a champion's scores: those in the store, and those recorded at its promotion where they are there no more."""
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
        # The champion's own: what it is judged by later, when weights of its name have replaced its scores.
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
    """Return rows as JSON values: numbers that are not there are None."""
    found: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return found


def _tell_mlflow(store: Store, record: PromotionRecord) -> None:
    """Move the alias, through the outbox: one tracked run for each network, so that the newest champion wins.

    Imported weights have no version, and a trained one's may not have been delivered yet: one is made of the card and the
    sidecar, which name the weights by place and digest; a version that is there already is not made twice.
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


def gate_passes(store: Store) -> Outcome:
    """The newest candidate became champion: no gated benchmark fell by more than its tolerance, or a person said why."""
    records = promotion_records(store)
    if not records:
        return Outcome(False, f"no weights were put forward yet; materialize {PROMOTIONS} with the name of weights.")
    newest = records[-1]
    verdict = newest.manifest.details["verdict"]
    champion = _champion_in(records, newest.family)
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
