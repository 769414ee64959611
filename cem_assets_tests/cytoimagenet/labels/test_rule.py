"""Weak labels, compared with an oracle written from the definition, and rule by rule."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.cytoimagenet.labels.rule import (
    LabelParams,
    assign_labels,
    keyed_order,
    largest_remainders,
)
from cem_assets_tests.cytoimagenet.labels.oracle import key_of, oracle
from cem_assets_tests.cytoimagenet.metadata_tables import large_table, small_table

SMALL = LabelParams(min_images=12, max_images=40, presample_images=90, seed=5)


def chosen_rows(table: pd.DataFrame, params: LabelParams | None = None) -> pd.DataFrame:
    return assign_labels(table, params).chosen


def as_sets(table: pd.DataFrame) -> dict[str, tuple[str, set[str]]]:
    return {label: (group["category"].iloc[0], set(group["idx"])) for label, group in table.groupby("label", sort=False)}


@pytest.mark.parametrize("match", ["value", "substring"])
@pytest.mark.parametrize("seed", range(12))
def test_labels_are_those_of_the_definition(seed, match):
    table = small_table(300 + 40 * seed, seed)
    params = SMALL.model_copy(update={"match": match, "seed": seed})
    assert as_sets(chosen_rows(table, params)) == oracle(table, params)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 250), st.integers(1, 30), st.integers(0, 40), st.integers(0, 60))
def test_labels_are_those_of_the_definition_for_any_thresholds(seed, num, low, more, still_more):
    table = small_table(num, seed)
    params = LabelParams(min_images=low, max_images=low + more, presample_images=low + more + still_more, seed=seed)
    assert as_sets(chosen_rows(table, params)) == oracle(table, params)


def test_the_order_of_the_rows_does_not_matter():
    table = small_table(600, 1)
    shuffled = table.sample(frac=1, random_state=3).reset_index(drop=True)
    pd.testing.assert_frame_equal(chosen_rows(table, SMALL), chosen_rows(shuffled, SMALL))


def test_another_seed_draws_other_rows_in_equal_numbers():
    table = small_table(600, 1)
    one, other = (chosen_rows(table, SMALL.model_copy(update={"seed": seed})) for seed in (1, 2))
    assert as_sets(one) != as_sets(other)
    assert as_sets(one).keys() == as_sets(other).keys()
    assert (one["label"].value_counts() <= SMALL.max_images).all()


def test_no_row_is_taken_twice_and_rows_come_back_unchanged():
    table = small_table(600, 2).assign(path=lambda t: "p/" + t["idx"], extra=range(600))
    chosen = chosen_rows(table, SMALL)
    assert chosen["idx"].is_unique
    again = chosen.drop(columns=["label", "category"]).sort_values("idx", ignore_index=True)
    expected = table[table["idx"].isin(chosen["idx"])].sort_values("idx", ignore_index=True)
    pd.testing.assert_frame_equal(again, expected)


def rows(num: int, start: int = 0, **cells: str) -> pd.DataFrame:
    base = {
        "name": "s",
        "organism": "",
        "cell_type": "",
        "cell_visible": "",
        "phenotype": "",
        "compound": "",
        "gene": "",
        "sirna": "",
    }
    return pd.DataFrame([{**base, **cells, "idx": f"i-{start + n}"} for n in range(num)])


def test_published_thresholds_apply_by_default():
    few, enough, many = rows(286, 0, compound="few"), rows(287, 1000, compound="enough"), rows(1400, 5000, compound="many")
    sizes = chosen_rows(pd.concat([few, enough, many])).groupby("label").size().to_dict()
    assert sizes == {"enough": 287, "many": 1000}


def test_rarer_labels_take_their_rows_first():
    table = pd.concat([rows(20, 0, organism="human", phenotype="mitosis"), rows(30, 100, organism="human")])
    chosen = chosen_rows(table, LabelParams(min_images=5, max_images=100, presample_images=100))
    assert chosen["label"].value_counts().to_dict() == {"human": 30, "mitosis": 20}
    assert chosen["label"].iloc[0] == "mitosis"


def test_a_value_of_two_columns_is_two_labels():
    table = pd.concat([rows(10, 0, cell_visible="actin"), rows(12, 100, gene="actin")])
    chosen = chosen_rows(table, LabelParams(min_images=5, max_images=100, presample_images=100))
    assert as_sets(chosen) == {
        "actin": ("cell_visible", {f"i-{n}" for n in range(10)}),
        "actin (gene)": ("gene", {f"i-{n}" for n in range(100, 112)}),
    }


def test_equal_counts_go_by_column_then_value():
    table = pd.concat([rows(6, 0, sirna="a"), rows(6, 10, compound="z"), rows(6, 20, compound="b"), rows(6, 30, organism="y")])
    chosen = chosen_rows(table, LabelParams(min_images=5, max_images=100, presample_images=100))
    assert list(dict.fromkeys(chosen["label"])) == ["y", "b", "z", "a"]


def test_whole_values_do_not_match_parts_but_substrings_do():
    table = pd.concat([rows(10, 0, cell_visible="actin"), rows(12, 100, cell_visible="alpha-actinin|nucleus")])
    params = LabelParams(min_images=8, max_images=100, presample_images=100)
    whole = as_sets(chosen_rows(table, params))
    assert len(whole["actin"][1]) == 10
    loose = as_sets(chosen_rows(table, params.model_copy(update={"match": "substring"})))
    assert len(loose["actin"][1]) == 22


def test_shares_of_strata_are_exact():
    parts = [rows(num, 1000 * num, compound="x", cell_type=kind) for kind, num in {"a": 60, "b": 30, "c": 10}.items()]
    chosen = chosen_rows(pd.concat(parts), LabelParams(min_images=61, max_images=61, presample_images=1000))
    assert chosen["cell_type"].value_counts().to_dict() == {"a": 37, "b": 18, "c": 6}  # shares 36.6, 18.3, 6.1


def test_presampling_keeps_the_shares_of_sources():
    big = rows(3000, 0, compound="x", phenotype="").assign(name="big", phenotype=[f"p{n}" for n in range(3000)])
    small = rows(1000, 5000, compound="x").assign(name="small")
    params = LabelParams(min_images=10, max_images=100, presample_images=400)
    chosen = chosen_rows(pd.concat([big, small]), params)
    assert chosen[chosen["label"] == "x"]["name"].value_counts().to_dict() == {"big": 75, "small": 25}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"organism": ["human"]}), "no column 'idx'"),
        (pd.DataFrame({"idx": ["a", "a"], "organism": ["human", "mouse"]}), "not unique: a"),
        (pd.DataFrame({"idx": ["a", None], "organism": ["human", "mouse"]}), "1 row.s. have no idx"),
    ],
)
def test_tables_without_identities_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        chosen_rows(table)


def test_missing_cells_and_columns_give_no_labels():
    table = pd.DataFrame({"idx": [f"i{n}" for n in range(20)], "compound": [None, np.nan, "", " ", "x"] * 4})
    chosen = chosen_rows(table, LabelParams(min_images=2, max_images=3, presample_images=3))
    assert set(chosen["label"]) == {"x"}
    assert len(chosen_rows(table.head(0))) == 0
    assert list(chosen_rows(table.head(0)).columns[:2]) == ["label", "category"]


def test_categorical_and_object_columns_give_the_same():
    table = small_table(400, 3)
    other = table.astype(dict.fromkeys(["organism", "cell_type", "compound"], "category")).astype({"phenotype": object})
    assert as_sets(chosen_rows(table, SMALL)) == as_sets(chosen_rows(other, SMALL))


def test_what_became_of_every_candidate_is_found():
    table = small_table(600, 4)
    found = assign_labels(table, SMALL)
    by_label = found.chosen.groupby("label").size()
    for row in found.candidates.itertuples():
        assert by_label.get(row.label, 0) == row.num_images
        expected = (
            "too few left" if row.num_left < SMALL.min_images else "all" if row.num_left <= SMALL.max_images else "sampled"
        )
        assert row.outcome == expected
    assert found.candidates["num_rows"].is_monotonic_increasing


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.data())
def test_quotas_are_within_one_of_the_share(sizes, data):
    num = data.draw(st.integers(0, sum(sizes)))
    array = np.array(sizes)
    quota = largest_remainders(array, np.arange(len(sizes)), num)
    assert quota.sum() == num
    assert (abs(quota - array * num / array.sum()) < 1).all()
    assert (quota <= array).all()


def test_the_keyed_order_is_that_of_the_hash():
    names = [f"n{n}" for n in range(500)]
    assert [names[place] for place in keyed_order(names, 9)] == sorted(names, key=lambda name: key_of(name, 9))


def test_a_large_table_obeys_every_rule_of_size():
    table = large_table(60_000, 0)
    found = assign_labels(table)
    sizes = found.chosen.groupby("label").size()
    assert len(sizes) > 20
    assert sizes.between(287, 1000).all()
    for row in found.candidates[found.candidates["outcome"] != "too few left"].itertuples():
        cells = found.chosen.loc[found.chosen["label"] == row.label, row.category]
        assert all(row.value in cell.split("|") for cell in cells)
