"""The promotion gate: what makes a champion, what does not, and what a person can override."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.benchmarks.leaderboard.card import promotion_card
from cem_assets.benchmarks.leaderboard.gate import FELL, GateRule, judge_promotion
from cem_assets_tests.benchmarks.score_rows import frame, row

RULES = {"guay": GateRule(True, 0.02), "urocell": GateRule(True, 0.02), "lucchi_pp": GateRule(False, 0.02)}


def rows(weights, scores, **changes):
    return frame(*(row(name, weights, value, **changes) for name, value in scores.items()))


@pytest.mark.parametrize(
    ("candidate", "champion", "decision"),
    [
        ({"guay": 0.50, "urocell": 0.70}, {"guay": 0.50, "urocell": 0.70}, "promoted"),
        ({"guay": 0.48, "urocell": 0.80}, {"guay": 0.50, "urocell": 0.70}, "promoted"),  # exactly the tolerance
        ({"guay": 0.479, "urocell": 0.80}, {"guay": 0.50, "urocell": 0.70}, "refused"),
        ({"guay": 0.50, "lucchi_pp": 0.10}, {"guay": 0.50, "lucchi_pp": 0.90}, "promoted"),  # saturated, not gated
        ({"guay": 0.50}, {"urocell": 0.70}, "undecided"),
        ({"lucchi_pp": 0.90}, {"lucchi_pp": 0.80}, "undecided"),
        ({}, {"guay": 0.70}, "undecided"),
        ({"guay": 0.70}, {}, "undecided"),
        ({"guay": 0.10}, None, "promoted"),  # the first champion
        ({"lucchi_pp": 0.90}, None, "undecided"),
        ({}, None, "undecided"),
        ({"unknown": 0.1, "guay": 0.5}, {"unknown": 0.9, "guay": 0.5}, "promoted"),
    ],
)
def test_the_rule(candidate, champion, decision):
    its = None if champion is None else rows("old", champion)
    verdict = judge_promotion(rows("new", candidate), its, RULES)
    assert verdict.decision == decision
    assert verdict.is_promoted == (decision == "promoted") and not verdict.is_overridden
    assert verdict.summary.lower().startswith(decision)
    overridden = judge_promotion(rows("new", candidate), its, RULES, "  the labels were wrong ")
    assert overridden.is_promoted and overridden.decision == decision and overridden.reason == "the labels were wrong"
    assert overridden.is_overridden == (decision != "promoted")
    assert ("labels were wrong" in overridden.summary) == overridden.is_overridden
    assert judge_promotion(rows("new", candidate), its, RULES, " \n").is_promoted == verdict.is_promoted


SCORES = st.dictionaries(st.sampled_from(["guay", "urocell", "lucchi_pp", "other"]), st.integers(0, 100).map(lambda n: n / 100))


@settings(max_examples=40)
@given(SCORES, SCORES)
def test_the_rule_agrees_with_its_definition(candidate, champion):
    verdict = judge_promotion(rows("new", candidate), rows("old", champion), RULES)
    both = [name for name in ("guay", "urocell") if name in candidate and name in champion]
    has_fallen = any(round(100 * (champion[name] - candidate[name])) > 2 for name in both)
    assert verdict.decision == ("undecided" if not both else "refused" if has_fallen else "promoted")
    assert set(verdict.missing) == {"guay", "urocell"} - set(both)
    assert set(verdict.table["benchmark"]) == set(candidate) | set(champion)


def test_a_refusal_says_where_and_by_how_much():
    verdict = judge_promotion(rows("new", {"guay": 0.40}), rows("old", {"guay": 0.50, "urocell": 0.7}), RULES)
    assert "guay 0.5000 -> 0.4000 (-10.00 points, tolerance 2)" in verdict.summary
    assert "urocell (no score of the candidate)" in verdict.summary
    (line,) = verdict.table[verdict.table["benchmark"] == "guay"].to_dict("records")
    assert line["outcome"] == FELL and line["change"] == pytest.approx(-0.1) and line["iterations"] == 1000
    card = promotion_card("0001", "new", "f" * 64, "resnet50", "old", verdict)
    assert "| guay (iou, 1,000 iterations, none) | yes | 40.00 | 50.00 | -10.00 | 2 | fell by more than its tolerance |" in card


def test_means_over_seeds_are_compared():
    mine = frame(row("guay", "new", 0.3, 0), row("guay", "new", 0.7, 1))
    its = frame(*(row("guay", "old", value, seed) for seed, value in enumerate((0.51, 0.51, 0.53))))
    assert judge_promotion(mine, its, RULES).table["change"].tolist() == [pytest.approx(0.5 - 0.51666666)]


def test_any_test_set_that_falls_refuses():
    def sets(weights, *values):
        return frame(*(row("guay", weights, value, test_set=f"test{number}") for number, value in enumerate(values)))

    verdict = judge_promotion(sets("new", 0.9, 0.5), sets("old", 0.6, 0.6), RULES)
    assert verdict.decision == "refused" and "guay (test1)" in verdict.summary and "(test0)" not in verdict.summary


def test_the_setting_of_most_iterations_that_both_have_is_compared():
    mine = frame(row("guay", "new", 0.9, iterations=50), row("guay", "new", 0.2), row("guay", "new", 0.9, iterations=9000))
    its = frame(row("guay", "old", 0.1, iterations=50), row("guay", "old", 0.5), row("guay", "old", 0.1, finetune_layer="all"))
    verdict = judge_promotion(mine, its, RULES)
    assert verdict.decision == "refused" and verdict.table["iterations"].tolist() == [1000]
    different = judge_promotion(rows("new", {"guay": 0.2}), rows("old", {"guay": 0.5}, iterations=7), RULES)
    assert different.decision == "undecided" and "different settings" in different.missing["guay"]
    newer = judge_promotion(rows("new", {"guay": 0.2}, code_version="2"), rows("old", {"guay": 0.5}), RULES)
    assert newer.decision == "undecided", "another version of the method is another measure"


def test_equal_parameters_are_compared_before_the_best_of_each():
    mine = frame(row("guay", "new", 0.5, parameters="p1"), row("guay", "new", 0.9, parameters="p2"))
    its = frame(row("guay", "old", 0.6, parameters="p1"), row("guay", "old", 0.95, parameters="p3"))
    assert judge_promotion(mine, its, RULES).table["change"].tolist() == [pytest.approx(-0.1)]
    assert judge_promotion(mine, its[its["parameters"] == "p3"], RULES).table["change"].tolist() == [pytest.approx(-0.05)]


def test_a_senseless_tolerance_is_refused():
    with pytest.raises(ValueError, match=r"guay: 2\b"):
        judge_promotion(frame(), frame(), {"guay": GateRule(True, 2)})
