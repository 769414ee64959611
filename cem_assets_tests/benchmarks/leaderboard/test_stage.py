"""The leaderboard and the promotions in a store, and the champion in a real MLflow."""

import io
import json
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest

from cem_assets import readers
from cem_assets.benchmarks.leaderboard import promotion
from cem_assets.benchmarks.leaderboard.promotion import PromotionRecord, champion_in, gate_passes, promote, promotion_records
from cem_assets.benchmarks.leaderboard.stage import make_leaderboard
from cem_assets.benchmarks.scores.stored import ROWS, rows_bytes
from cem_assets.store.assets import BENCHMARK_SCORES, LEADERBOARD, WEIGHTS
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, current_manifest, manifest_numbers
from cem_assets.tracking import runs as tracked_runs
from cem_assets.tracking.outbox import drain_outbox, waiting_entries
from cem_assets.tracking.runs import open_tracked_run
from cem_assets_tests.benchmarks.score_rows import row


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(tracked_runs, "_FIRST_PAUSE_S", 0.2)


@pytest.fixture
def unreachable(monkeypatch):
    """MLflow cannot be reached, and promotions wait for it only briefly."""
    monkeypatch.setattr(promotion, "_WAIT_S", 0.3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory) -> Path:
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(empty_mlflow, tmp_path, monkeypatch):
    import mlflow

    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


def commit_weights(store, name, version=1, arch="resnet50", method="moco"):
    """Commit weights with the files and details that leaderboards and promotions read."""
    commit = Commit(store, Inputs(WEIGHTS, name, "1", {"version": version}))
    commit.write("README.md", f"# {name}, version {version}\n".encode())
    commit.write("weights.json", b"{}")
    release = {"asset": f"cem/releases/v{version}", "digest": f"r{version}"}
    return commit.finish({}, {"arch": arch, "method": method, "provenance": {"release": release}}).digest


def commit_score(store, benchmark, weights, value, digest, seed=0, **changes):
    made = row(benchmark, weights, value, seed, weights_digest=digest, **changes)
    extra = row(benchmark, weights, 0.123, seed, weights_digest=digest, **{**changes, "is_main": False, "class_name": "mito"})
    folder = f"{benchmark}/{weights}/{made.parameters}-s{seed}"
    commit = Commit(store, Inputs(BENCHMARK_SCORES, folder, "1", {"value": value}, {"weights": digest}))
    commit.write(ROWS, rows_bytes([made, extra]))
    return commit.finish({"rows": 2})


def trained(store, name, scores, version=1, **weights):
    """Commit weights and their scores with one seed."""
    digest = commit_weights(store, name, version, **weights)
    for benchmark, value in scores.items():
        release = {"release": f"cem/releases/v{version}", "release_digest": f"r{version}"}
        commit_score(store, benchmark, name, value, digest, **release)
    return digest


def champion(store, family="resnet50") -> PromotionRecord | None:
    return champion_in(promotion_records(store), family)


# Leaderboard


def test_a_leaderboard_has_table_plots_and_words(local_store):
    moco = trained(local_store, "moco", {"urocell": 0.70, "guay": 0.40})
    commit_score(local_store, "urocell", "moco", 0.72, moco, seed=1)
    random_digest = commit_weights(local_store, "random_resnet50", method="random")
    commit_score(local_store, "urocell", "random_resnet50", 0.42, random_digest, finetune_layer="all")
    done = []
    result = make_leaderboard(local_store, "run", lambda step, total: done.append((step, total)))
    manifest = result.manifest
    assert result.is_new and done == [(1, 2), (2, 2)]
    names = {item.name for item in manifest.objects}
    assert names == {"leaderboard.csv", "leaderboard.parquet", "README.md", "urocell.png", "guay.png"}
    assert all(item.num_bytes <= 100_000 for item in manifest.find(".png"))
    counts = dict(manifest.counts)
    assert {key: counts[key] for key in ("runs", "scores", "entries", "weights", "benchmarks")} == {
        "runs": 4, "scores": 8, "entries": 4, "weights": 2, "benchmarks": 2,
    }  # fmt: skip
    table = readers.read_leaderboard(local_store.url)
    top = table[(table["benchmark"] == "urocell") & (table["rank"] == 1)].to_dict("records")
    assert len(top) == 1 and top[0]["weights"] == "moco"
    # The second seed was committed without a release, and seeds of different releases are different entries.
    assert top[0]["mean"] in (0.70, 0.72) and top[0]["num_seeds"] == 1
    published = table[table["is_published"]]
    assert len(published) and (published["source"] != "").all()
    csv = pd.read_csv(io.BytesIO(local_store.read(f"{manifest.folder}/leaderboard.csv")))
    assert len(csv) == len(table) and csv["is_published"].sum() == len(published)
    text = local_store.read(f"{manifest.folder}/README.md").decode()
    assert "![urocell](urocell.png)" in text and "*published*" in text


def test_seeds_are_averaged_and_read_back_alike(local_store):
    digest = commit_weights(local_store, "moco")
    for seed, value in enumerate((0.70, 0.72, 0.77)):
        commit_score(local_store, "urocell", "moco", value, digest, seed)
    make_leaderboard(local_store)
    table = readers.read_leaderboard(local_store.url)
    (entry,) = table[~table["is_published"]].to_dict("records")
    assert entry["num_seeds"] == 3 and entry["mean"] == pytest.approx(0.73) and entry["std"] == pytest.approx(0.0360555)
    assert len(readers.read_scores(root=local_store.url)) == 6
    assert set(readers.read_scores("urocell", "moco", local_store.url)["seed"]) == {0, 1, 2}
    assert readers.read_scores("guay", root=local_store.url).empty


def test_equal_scores_make_no_second_leaderboard_and_damage_is_repaired(local_store):
    trained(local_store, "moco", {"urocell": 0.7})
    first = make_leaderboard(local_store)
    trained(local_store, "swav", {"urocell": 0.75})
    second = make_leaderboard(local_store)
    again = make_leaderboard(local_store)
    assert (second.is_new, again.is_new) == (True, False) and again.manifest.digest == second.manifest.digest
    assert first.manifest.digest in second.manifest.inputs.upstream.values()
    local_store.put(f"{second.manifest.folder}/leaderboard.csv", b"scribble")
    repaired = make_leaderboard(local_store)
    assert repaired.manifest.digest == second.manifest.digest and not make_leaderboard(local_store).is_new
    assert manifest_numbers(local_store, LEADERBOARD) == [1, 2]
    local_store.delete([f"{second.manifest.folder}/leaderboard.parquet"])
    trained(local_store, "late", {"urocell": 0.1})
    third = make_leaderboard(local_store).manifest  # it is compared with the newest undamaged one
    assert first.manifest.digest in third.inputs.upstream.values()


def test_changes_since_the_last_leaderboard_and_the_last_release_are_told(local_store):
    trained(local_store, "moco", {"urocell": 0.70})
    make_leaderboard(local_store)
    trained(local_store, "moco", {"urocell": 0.75}, version=2)
    result = make_leaderboard(local_store).manifest
    (change,) = result.details["changes"]
    assert (change["weights"], change["kind"]) == ("moco", "changed") and change["change"] == pytest.approx(0.05)
    table = readers.read_leaderboard(local_store.url)
    (entry,) = table[~table["is_published"]].to_dict("records")
    assert entry["previous_release"] == "cem/releases/v1" and entry["release_change"] == pytest.approx(0.05)
    text = local_store.read(f"{result.folder}/README.md").decode()
    assert "| urocell (iou, 1,000 iterations, none) | `moco` | changed | 70.00 | 75.00 | +5.00 |" in text
    assert "| urocell (iou, 1,000 iterations, none) | cem/releases/v2 | `moco` | 75.00 | +5.00 |" in text


def test_scores_of_replaced_weights_are_superseded(local_store):
    trained(local_store, "moco", {"urocell": 0.9, "guay": 0.5})
    digest = commit_weights(local_store, "moco", version=2)
    commit_score(local_store, "guay", "moco", 0.4, digest)
    result = make_leaderboard(local_store)
    assert result.manifest.counts["superseded"] == 1
    assert [(item["benchmark"], item["mean"]) for item in result.manifest.details["leaders"]] == [("guay", 0.4)]


def test_a_store_without_scores_shows_what_was_published(local_store):
    with pytest.raises(FileNotFoundError, match="benchmarks/leaderboard"):
        readers.read_leaderboard(local_store.url)
    result = make_leaderboard(local_store)
    table = readers.read_leaderboard(local_store.url)
    assert table["is_published"].all() and len(table) == result.manifest.counts["published"] > 20


# Promotion


def test_verdicts_are_recorded_whether_they_promote_or_not(local_store, unreachable):
    assert champion(local_store) is None and not gate_passes(local_store).passed
    trained(local_store, "moco", {"urocell": 0.70, "guay": 0.40})
    first = promote(local_store, "moco", run_id="r")
    assert first.is_new and champion(local_store).weights == "moco" and gate_passes(local_store).passed
    trained(local_store, "swav", {"urocell": 0.60, "guay": 0.50})
    second = promote(local_store, "swav")
    assert second.manifest.details["verdict"]["decision"] == "refused"
    assert second.is_new and champion(local_store, "resnet50").weights == "moco"
    outcome = gate_passes(local_store)
    assert not outcome.passed and "urocell 0.7000 -> 0.6000" in outcome.description
    assert outcome.facts["champion"] == "moco" and outcome.facts["compared"] == 2
    assert not promote(local_store, "swav").is_new, "the same was judged already"
    third = promote(local_store, "swav", "urocell's labels were corrected")
    assert third.is_new and champion(local_store).weights == "swav" and gate_passes(local_store).passed
    assert not promote(local_store, "swav").is_new, "champion already"
    records = promotion_records(local_store)
    assert [(item.name, item.is_promoted, item.is_overridden) for item in records] == [
        ("0001", True, False), ("0002", False, False), ("0003", True, True),
    ]  # fmt: skip
    verdict = json.loads(local_store.read(f"{third.manifest.folder}/verdict.json"))
    assert verdict["verdict"]["reason"] == "urocell's labels were corrected" and verdict["champion"] == "moco"
    assert "Overridden" in local_store.read(f"{third.manifest.folder}/README.md").decode()


def test_a_champion_is_judged_by_its_own_scores_after_its_name_was_trained_anew(local_store, unreachable):
    trained(local_store, "moco", {"urocell": 0.70, "guay": 0.40})
    promote(local_store, "moco")
    old = current_manifest(local_store, BENCHMARK_SCORES, "guay/moco/aaaaaaaaaaaa-s0")
    trained(local_store, "moco", {"urocell": 0.71, "guay": 0.30}, version=2)
    local_store.delete([f"{old.folder}/{ROWS}"])  # deleted by the sweep; the record of the promotion has the rows
    verdict = promote(local_store, "moco").manifest.details["verdict"]
    changes = {row["benchmark"]: row["change"] for row in verdict["table"]}
    assert verdict["decision"] == "refused" and changes == {"urocell": pytest.approx(0.01), "guay": pytest.approx(-0.1)}


def test_tolerances_of_the_store_count(local_store, unreachable):
    trained(local_store, "moco", {"urocell": 0.70})
    promote(local_store, "moco")
    trained(local_store, "swav", {"urocell": 0.60})
    for setting, decision in ((b"", "refused"), (b"is_gated = false", "undecided"), (b"tolerance = 0.1", "promoted")):
        local_store.put("settings/benchmarks.toml", b"[urocell]\n" + setting)
        assert promote(local_store, "swav").manifest.details["verdict"]["decision"] == decision


def test_every_network_has_its_own_champion(local_store, unreachable):
    trained(local_store, "moco", {"urocell": 0.70})
    trained(local_store, "cyto", {"coos_7": 0.80}, arch="efficientnet_b0")
    promote(local_store, "moco")
    promote(local_store, "cyto")
    assert champion(local_store, "resnet50").weights == "moco"
    assert champion(local_store, "efficientnet_b0").weights == "cyto"
    assert champion(local_store, "resnet18") is None


def test_a_verdict_that_came_second_is_judged_again(local_store, unreachable, monkeypatch):
    trained(local_store, "one", {"urocell": 0.70})
    trained(local_store, "two", {"urocell": 0.50})
    plain = promotion._commit
    raced = []

    def late(*arguments):
        if not raced:
            raced.append(True)
            promote(local_store, "one")
        return plain(*arguments)

    monkeypatch.setattr(promotion, "_commit", late)
    result = promote(local_store, "two")
    assert result.manifest.inputs.partition == "0002" and champion(local_store).weights == "one"
    assert result.manifest.details["verdict"]["decision"] == "refused"


def test_what_cannot_be_promoted_is_said(local_store):
    with pytest.raises(FileNotFoundError, match="pretraining/weights"):
        promote(local_store, "nothing")
    with pytest.raises(ValueError, match="fused"):
        promote(local_store, "a+b")
    with pytest.raises(ValueError, match="expected at most 2,000"):
        promote(local_store, "a", "x" * 2001)
    assert promotion_records(local_store) == []


# MLflow


def holders(client):
    return {model.name: dict(model.aliases) for model in client.search_registered_models() if model.aliases}


def test_mlflow_has_one_champion_for_each_network(local_store, client):
    digest = trained(local_store, "moco", {"urocell": 0.70})
    client.create_registered_model("moco")  # versions as a training makes them
    client.create_model_version("moco", "runs:/x/model", tags={"digest": "older"}, await_creation_for=0)
    client.create_model_version("moco", "runs:/y/model", tags={"digest": digest}, await_creation_for=0)
    promote(local_store, "moco")
    assert client.get_model_version_by_alias("moco", "champion").tags["digest"] == digest
    assert len(client.search_model_versions("name='moco'")) == 2, "no version was made twice"

    trained(local_store, "cyto", {"coos_7": 0.80}, arch="efficientnet_b0", method="supervised")
    promote(local_store, "cyto")
    imported = trained(local_store, "cem1.5m_swav", {"urocell": 0.80})
    promote(local_store, "cem1.5m_swav")
    assert set(holders(client)) == {"cyto", "cem1.5m_swav"}
    version = client.get_model_version_by_alias("cem1.5m_swav", "champion")
    assert version.tags["digest"] == imported and version.tags["release"] == "cem/releases/v1"
    assert version.description.startswith("# cem1.5m_swav") and version.tags["weights"].startswith(local_store.url)
    run = client.get_run(version.run_id)
    assert run.data.tags["champion"] == "cem1.5m_swav" and run.info.run_name == "champion resnet50"
    assert {item.path for item in client.list_artifacts(run.info.run_id, "promotions")} == {
        "promotions/0001",
        "promotions/0003",
    }

    trained(local_store, "worse", {"urocell": 0.1})
    promote(local_store, "worse")
    assert set(holders(client)) == {"cyto", "cem1.5m_swav"}
    client.delete_registered_model_alias(
        "cem1.5m_swav", "champion"
    )  # a lost alias is set again when the weights are put forward again
    promote(local_store, "cem1.5m_swav")
    assert set(holders(client)) == {"cyto", "cem1.5m_swav"}
    assert list(local_store.walk("tracking/outbox")) == [] and list(local_store.walk("tracking/refused")) == []


def test_mlflow_being_down_costs_no_promotion_and_the_newest_wins(local_store, client, unreachable, tmp_path, monkeypatch):
    started = time.monotonic()
    for name, value in (("moco", 0.70), ("swav", 0.75)):
        trained(local_store, name, {"urocell": value})
        promote(local_store, name)
    assert time.monotonic() - started < 15 and champion(local_store).weights == "swav"
    (key,) = local_store.children("tracking/outbox")
    waiting = len(waiting_entries(local_store, key))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    drained = drain_outbox(local_store)
    assert (drained.num_delivered, drained.num_left) == (waiting, 0)
    assert holders(client) == {"swav": {"champion": 1}}


def test_an_alias_that_makes_no_sense_is_refused_at_once_and_one_without_a_version_set_aside(local_store, client, caplog):
    with open_tracked_run(local_store, "ab" * 32, "benchmarks/promotions", "champion resnet50", {}, {}) as run:
        for alias, group in (("champion", "a' OR 'b"), ("", "resnet50"), ("1st", "resnet50")):
            with pytest.raises(ValueError, match="is not allowed"):
                run.set_alias("moco", "d", alias, group)
        run.register_model("moco", "model", {"digest": "one"}, "card")
        run.set_alias("moco", "another", "champion", "resnet50")
    assert holders(client) == {} and "has no version whose tag 'digest' is 'another'" in caplog.text
    assert len([item for item in local_store.walk("tracking/refused") if item.key.endswith(".json")]) == 1
