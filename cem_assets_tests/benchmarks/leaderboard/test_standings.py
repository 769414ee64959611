"""Standings: range over seeds, ranks among comparable entries, gains, published figures, and what changed."""

import io
import random
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cem_assets.benchmarks.leaderboard.card import leaderboard_card
from cem_assets.benchmarks.leaderboard.changes import best_by_release, changes_between
from cem_assets.benchmarks.leaderboard.pictures import standings_png
from cem_assets.benchmarks.leaderboard.standings import DTYPES, WeightsInfo, aggregate_seeds, make_standings
from cem_assets.catalog.benchmarks import benchmark_rows
from cem_assets_tests.benchmarks.score_rows import frame, row

ROWS = benchmark_rows()
RANDOM = {"random_resnet50": WeightsInfo("resnet50", True)}
INFOS = {**RANDOM, "moco": WeightsInfo("resnet50"), "swav": WeightsInfo("resnet50")}


def ours(table):
    return table[~table["is_published"]]


def entry(table, weights, **where):
    found = ours(table)
    for name, value in {"weights": weights, **where}.items():
        found = found[found[name] == value]
    (one,) = found.to_dict("records")
    return one


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=20), st.randoms())
def test_seeds_give_mean_and_spread_in_any_order(drawn, shuffler):
    rows, oracle = [], {}
    for number, (weights, parameters, value) in enumerate(drawn):
        rows.append(row("guay", f"w{weights}", value, seed=number, parameters=f"p{parameters}"))
        oracle.setdefault((f"w{weights}", f"p{parameters}"), []).append(value)
    shuffler.shuffle(rows)
    found = aggregate_seeds(frame(*rows))
    assert len(found) == len(oracle)
    for item in found.to_dict("records"):
        values = oracle[item["weights"], item["parameters"]]
        assert item["num_seeds"] == len(values)
        assert item["mean"] == pytest.approx(statistics.fmean(values))
        assert (item["lowest"], item["highest"]) == (min(values), max(values))
        if len(values) > 1:
            assert item["std"] == pytest.approx(statistics.stdev(values), abs=1e-12)
        else:
            assert np.isnan(item["std"])


def test_only_main_rows_count():
    rows = [row("guay", "moco", 0.5), row("guay", "moco", 0.9, class_name="mitochondrion", is_main=False)]
    assert aggregate_seeds(frame(*rows))["mean"].tolist() == [0.5]
    assert aggregate_seeds(frame(rows[1])).empty and aggregate_seeds(frame()).empty


def test_single_test_sets_of_the_main_metric_stand_beside_the_main_number():
    rows = [
        row("coos_7", "moco", 0.5, metric="knn_accuracy"),
        row("coos_7", "moco", 0.4, metric="knn_accuracy", test_set="test1", is_main=False),
        row("coos_7", "moco", 0.6, metric="knn_accuracy", test_set="test2", is_main=False),
        row("coos_7", "moco", 0.9, metric="knn_accuracy", test_set="test2", class_name="ER", is_main=False),
        row("coos_7", "moco", 0.1, metric="image_accuracy", test_set="test2", is_main=False),
    ]
    table = make_standings(frame(*rows), INFOS, {})
    assert table[["test_set", "mean", "is_main"]].values.tolist() == [
        ["all", 0.5, True],
        ["test1", 0.4, False],
        ["test2", 0.6, False],
    ]
    before = make_standings(frame(), {}, {})
    assert changes_between(make_standings(frame(*rows), INFOS, {}, before), before)["test_set"].tolist() == ["all"]


def test_scores_that_cannot_be_compared_are_all_named():
    rows = [row("guay", "moco", 0.5), row("guay", "moco", 0.6), row("cremi", "swav", float("nan"), seed=3)]
    with pytest.raises(ValueError, match=r"2 score\(s\).*cremi/swav/aaaaaaaaaaaa-s3 .*nan.*guay/moco.*more than once"):
        aggregate_seeds(frame(*rows))


def test_ranks_are_among_equal_settings_and_ties_share_the_better():
    rows = [
        row("guay", "moco", 0.5),
        row("guay", "swav", 0.7),
        row("guay", "other", 0.7),
        row("guay", "moco", 0.9, finetune_layer="all"),
        row("guay", "moco", 0.1, iterations=50),
        row("guay", "moco", 0.2, code_version="2"),
        row("cremi", "moco", 0.3),
    ]
    table = make_standings(frame(*rows), INFOS, {})
    assert list(table.columns) == list(DTYPES)
    where = {"benchmark": "guay", "iterations": 1000, "code_version": "1", "opened": "none"}
    assert [entry(table, name, **where)["rank"] for name in ("swav", "other", "moco")] == [1, 1, 3]
    alone = [{**where, "opened": "all"}, {**where, "iterations": 50}, {**where, "code_version": "2"}]
    assert [entry(table, "moco", **place)["rank"] for place in alone] == [1, 1, 1]
    assert table.iloc[1:]["iterations"].tolist()[0] == 1000, "the most iterations come first"


def test_a_random_encoder_stands_in_every_setting_of_as_many_iterations():
    rows = [
        row("guay", "random_resnet50", 0.2, finetune_layer="all"),
        row("guay", "moco", 0.5),
        row("guay", "swav", 0.1, finetune_layer="layer4"),
        row("cremi", "random_resnet50", 0.3, finetune_layer="all"),
        row("cremi", "moco", 0.6, iterations=7),
    ]
    table = make_standings(frame(*rows), INFOS, {})
    randoms = table[table["is_random"]]
    assert randoms[["benchmark", "opened", "rank", "finetune_layer"]].values.tolist() == [
        ["cremi", "all", 1, "all"],
        ["guay", "layer4", 1, "all"],
        ["guay", "none", 2, "all"],
    ]
    assert entry(table, "moco", benchmark="guay")["gain"] == pytest.approx(0.3)
    assert entry(table, "moco", benchmark="guay")["relative_gain"] == pytest.approx(1.5)
    assert entry(table, "swav")["gain"] == pytest.approx(-0.1)
    assert np.isnan(entry(table, "moco", benchmark="cremi")["gain"])


def test_random_encoders_alone_make_standings():
    table = ours(make_standings(frame(row("guay", "random_resnet50", 0.2, finetune_layer="all")), RANDOM, {}))
    assert table[["weights", "mean", "rank", "opened"]].values.tolist() == [["random_resnet50", 0.2, 1, "all"]]


def test_gains_are_over_the_random_encoder_of_the_same_network_and_way():
    infos = {
        "a": WeightsInfo("resnet50"),
        "b": WeightsInfo("efficientnet_b0"),
        "a+b": WeightsInfo(""),
        "r50": WeightsInfo("resnet50", True),
        "rb0": WeightsInfo("efficientnet_b0", True),
    }

    def scored(name, value, way="w1"):
        return row("cyclops", name, value, parameters=way, iterations=0, finetune_layer="", metric="loo_knn_accuracy")

    rows = [
        scored("a", 0.6),
        scored("b", 0.7, "w2"),
        scored("a+b", 0.8),
        scored("r50", 0.5),
        scored("rb0", 0.4),
        scored("rb0", 0.2, "w2"),
    ]
    table = make_standings(frame(*rows), infos, {})
    assert entry(table, "a")["gain"] == pytest.approx(0.1)
    assert entry(table, "b")["gain"] == pytest.approx(0.5)
    assert np.isnan(entry(table, "a+b")["gain"]), "no network, two random encoders: over which?"


def test_scores_of_weights_that_were_replaced_are_shown_unranked():
    infos = {"moco": WeightsInfo("resnet50", digest="new")}
    rows = [row("guay", "moco", 0.9, weights_digest="old"), row("guay", "moco", 0.5, seed=1, weights_digest="new")]
    table = make_standings(frame(*rows), infos, {})
    assert entry(table, "moco", weights_digest="new")["rank"] == 1
    old = entry(table, "moco", weights_digest="old")
    assert old["is_superseded"] and pd.isna(old["rank"])


def test_published_figures_stand_beside_and_are_never_ranked():
    rows = [
        row("coos_7", "moco", 0.7, metric="knn_accuracy", iterations=0),
        row("coos_7", "moco", 0.8, test_set="test2", metric="knn_accuracy", iterations=0, is_main=False),
        row("bbbc021", "moco", 0.9, metric="nsc_accuracy", iterations=0),
        row("guay", "moco", 0.6),
        row("guay", "random_resnet50", 0.4, finetune_layer="all"),
    ]
    table = make_standings(frame(*rows), INFOS, ROWS)
    published = table[table["is_published"]]
    assert len(published) == sum(len(item.published) for item in ROWS.values())
    assert published["rank"].isna().all() and (published["source"] != "").all() and (published["num_seeds"] == 0).all()

    def of(benchmark, weights, test_set):
        found = published[(published["benchmark"] == benchmark) & (published["weights"] == weights)]
        (one,) = found[found["test_set"] == test_set].to_dict("records")
        return one

    fusion = of("coos_7", "fusion", "test2")
    assert (fusion["metric"], fusion["mean"]) == ("knn_accuracy", pytest.approx(0.9507))
    assert fusion["gain"] == pytest.approx(0.9507 - 0.6781)
    assert of("bbbc021", "cytoimagenet", "all")["metric"] == "nsc_accuracy"
    guay = of("guay", "cem500k_mocov2", "all")
    assert (guay["metric"], guay["relative_gain"]) == ("iou", 0.4) and np.isnan(guay["mean"])
    assert (guay["low"], guay["high"]) == (pytest.approx(0.38), pytest.approx(0.42))
    assert entry(table, "moco", benchmark="guay")["relative_gain"] == pytest.approx(0.5), "to be read beside it"
    assert "mean of the four" in of("perez_mito", "cem500k_mocov2", "all")["note"]


def test_the_last_release_is_remembered_through_later_leaderboards():
    def standing(value, release, previous, seed=0, parameters="p"):
        digest = f"d-{release}-{parameters}"
        made = row("guay", "moco", value, seed=seed, release=f"cem/releases/{release}", release_digest=release,
                   weights_digest=digest, parameters=parameters)  # fmt: skip
        return make_standings(frame(made), {}, {}, previous)

    first = standing(0.5, "v1", None)
    assert entry(first, "moco")["previous_release"] == "" and np.isnan(entry(first, "moco")["change"])
    second = standing(0.6, "v2", first)
    assert entry(second, "moco")["previous_release"] == "cem/releases/v1"
    third = standing(0.65, "v2", second, parameters="other norms")
    found = entry(third, "moco")
    assert (found["previous"], found["change"]) == (0.6, pytest.approx(0.05))
    assert (found["previous_release"], found["previous_release_mean"]) == ("cem/releases/v1", 0.5)
    assert found["release_change"] == pytest.approx(0.15)
    fourth = standing(0.7, "v10", third)
    assert entry(fourth, "moco")["previous_release"] == "cem/releases/v2"
    told = best_by_release(fourth, ["cem/releases/v1", "cem/releases/v2", "cem/releases/v10"])
    assert told[["release", "mean"]].values.tolist() == [["cem/releases/v2", 0.65], ["cem/releases/v10", 0.7]]
    assert told["change"].tolist()[1] == pytest.approx(0.05)


def test_changes_tell_what_came_went_and_moved():
    before = make_standings(frame(row("guay", "moco", 0.5), row("guay", "gone", 0.4), row("guay", "same", 0.3)), {}, ROWS)
    rows = [row("guay", "moco", 0.45), row("guay", "new", 0.6), row("guay", "same", 0.3)]
    now = make_standings(frame(*rows), {}, ROWS, before)
    found = changes_between(now, before)
    assert found[["weights", "kind"]].values.tolist() == [["gone", "gone"], ["moco", "changed"], ["new", "new"]]
    assert found["change"].tolist()[1] == pytest.approx(-0.05)
    again = make_standings(frame(*rows), {}, ROWS, now)
    assert changes_between(again, now).empty
    assert len(changes_between(make_standings(frame(), {}, {}, now), now)) == 3


def many_rows():
    names = ("random_resnet50", "moco", "swav", "imagenet_$x$")
    rows = []
    for number, (weights, iterations, seed) in enumerate((w, i, s) for w in names for i in (1000, 50) for s in range(3)):
        layer = "all" if weights.startswith("random") else "none"
        rows.append(row("guay", weights, 0.3 + 0.01 * number, seed, iterations=iterations, finetune_layer=layer))
    return rows


def test_standings_do_not_depend_on_the_order_of_scores():
    rows = many_rows()
    first = make_standings(frame(*rows), INFOS, ROWS)
    random.Random(1).shuffle(rows)
    pd.testing.assert_frame_equal(first, make_standings(frame(*rows), INFOS, ROWS))


def test_the_picture_is_small_and_the_same_every_time():
    table = make_standings(frame(*many_rows()), INFOS, ROWS)
    guay = table[table["benchmark"] == "guay"]
    data = standings_png(guay, ROWS["guay"].title)
    assert data == standings_png(guay, ROWS["guay"].title) and len(data) <= 100_000
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0x4C, 0x72, 0xB0), (0x8C, 0x8C, 0x8C), (0xC4, 0x4E, 0x52)):
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 12).any(), "ours, random, published"


def test_the_picture_of_very_many_entries_still_fits():
    rows = [
        row("coos_7", f"weights_{number}", 0.4 + 0.005 * number, test_set=f"test{part}", metric="knn_accuracy", iterations=0)
        for number in range(30)
        for part in range(9)
    ]
    table = make_standings(frame(*rows), {}, ROWS)
    assert len(standings_png(table[table["benchmark"] == "coos_7"], "COOS-7")) <= 100_000


def test_a_picture_without_scores_says_so():
    assert standings_png(make_standings(frame(), {}, {}), "nothing").startswith(b"\x89PNG")


def test_the_card_marks_published_values_with_their_source():
    table = make_standings(frame(*many_rows()), INFOS, ROWS)
    text = leaderboard_card(table, ROWS, None, best_by_release(table, []), {"guay": "guay.png"})
    assert "![guay](guay.png)" in text and "This is the first leaderboard." in text
    published = [line for line in text.splitlines() if "*published*" in line and "cem500k_mocov2" in line]
    assert published and all("chart of volume-em/cem-dataset" in line for line in published)
    assert any("*+40 % ± 2.0*" in line for line in published)
    assert "| 1 | `imagenet_$x$` |" in text and "3 seeds" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ") and "published" in line}
    assert widths == {7}


def test_panels_are_titled_by_their_setting():
    few, many = (make_standings(frame(row("guay", "moco", 0.5, iterations=steps)), INFOS, {}) for steps in (7, 1000))
    assert standings_png(few, "guay") != standings_png(many, "guay"), "they differ by the iterations in the title alone"
