"""Label events are written once, and give the current labels, the agreement, and the table that training reads."""

import itertools
import logging

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from cem_assets.cem.classifier.answers import (
    EVENTS,
    LabelEvent,
    LabelLog,
    agreement,
    check_annotator,
    current_labels,
    label_table,
    record_event,
    write_label_table,
)
from cem_assets.cem.classifier.labels import label_tables, read_labels
from cem_assets.store.store import Store


def event(number: int, name: str = "p", label: str = "good", annotator: str = "ann", undoes: int | None = None) -> LabelEvent:
    taken_back = "" if undoes is None else event_id(undoes)
    return LabelEvent(event_id=event_id(number), dataset="vnc", name=name, label=label, annotator=annotator, undoes=taken_back)


def event_id(number: int) -> str:
    return f"{1_700_000_000_000 + number:013d}-{number:016x}"


def said(events: list[LabelEvent]) -> dict[tuple[str, str], str]:
    return {place: found.label for place, found in current_labels(events).items()}


def test_the_same_event_twice_is_one_object(store: Store):
    record_event(store, event(1))
    record_event(store, event(1))
    assert [item.key for item in store.walk(EVENTS)] == [f"{EVENTS}/vnc/ann/{event_id(1)}.json"]
    with pytest.raises(ValueError, match="holds another answer"):
        record_event(store, event(1, label="bad"))
    log = LabelLog(store, "vnc")
    assert log.refresh() == 1 and log.events() == [event(1)]
    record_event(store, event(2, label="bad", annotator="zoe"))
    assert log.refresh() == 1 and log.refresh() == 0
    assert log.events() == [event(1), event(2, label="bad", annotator="zoe")]


def test_the_newest_answer_that_was_not_taken_back_holds():
    answers = [event(1), event(2, label="bad"), event(3, label="undo", undoes=2), event(4, "q", "skip")]
    assert said(answers) == {("ann", "p"): "good", ("ann", "q"): "skip"}
    everything_undone = [*answers, event(5, label="undo", undoes=1)]
    assert said(everything_undone) == {("ann", "q"): "skip"}
    of_another = [event(1), event(2, label="undo", annotator="zoe", undoes=1)]
    assert said(of_another) == {("ann", "p"): "good"}, "nobody takes back what another said"


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("pq"), st.sampled_from(["good", "bad", "skip", "undo"])), max_size=12
    ),
    st.randoms(use_true_random=False),
)
def test_folding_is_a_stack_for_each_annotator_and_patch_in_whatever_order_events_come(answers, random):
    events, stacks = [], {}
    for number, (annotator, name, label) in enumerate(answers):
        stack = stacks.setdefault((annotator, name), [])
        if label != "undo":
            stack.append((number, label))
            events.append(event(number, name, label, annotator))
        elif stack:
            events.append(event(number, name, label, annotator, undoes=stack.pop()[0]))
    random.shuffle(events)
    assert said(events) == {place: stack[-1][1] for place, stack in stacks.items() if stack}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_kappa_of_two_annotators_is_cohens(pairs):
    words = [tuple("good" if value else "bad" for value in pair) for pair in pairs]
    labels = {(who, f"p{n:02}"): pair[column] for n, pair in enumerate(words) for column, who in enumerate("ab")}
    labels[("a", "alone")] = "good"  # a patch that only one of them saw does not count
    labels[("b", "skipped")] = "skip"
    found = agreement(labels)
    assert found.num_shared == len(words)
    assert found.observed == pytest.approx(sum(a == b for a, b in words) / len(words))
    assert found.conflicts == tuple(f"p{n:02}" for n, (a, b) in enumerate(words) if a != b)
    if len(set(itertools.chain(*words))) == 1:
        assert found.kappa is None, "chance alone explains all"
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(*zip(*words, strict=True), labels=["good", "bad"]))


def test_agreement_of_three_is_the_mean_share_of_agreeing_pairs():
    labels = {
        ("a", "p"): "good",
        ("b", "p"): "good",
        ("c", "p"): "bad",
        ("a", "q"): "bad",
        ("b", "q"): "bad",
        ("c", "q"): "skip",
    }
    found = agreement(labels)
    assert found.observed == pytest.approx((1 / 3 + 1) / 2)
    assert (found.num_shared, found.kappa, found.conflicts) == (2, None, ("p",))
    assert agreement({("a", "p"): "good"}).observed is None


def test_the_majority_decides_and_a_tie_is_none():
    labels = {
        ("a", "p"): "good",
        ("b", "p"): "good",
        ("c", "p"): "bad",
        ("a", "q"): "bad",
        ("b", "q"): "good",
        ("a", "r"): "skip",
    }
    table = label_table("vnc", labels)
    assert table.to_dict("list") == {
        "dataset": ["vnc", "vnc"],
        "name": ["p", "q"],
        "label": ["good", "none"],
        "num_good": [2, 1],
        "num_bad": [1, 1],
        "num_skipped": [0, 0],
    }


def test_the_written_table_is_what_training_reads_and_conflicts_are_told(local_store: Store, caplog):
    assert write_label_table(local_store, "vnc") is None
    for answer in [event(1, "p"), event(2, "q", "bad"), event(3, "q", "good", "zoe"), event(4, "r", "skip")]:
        record_event(local_store, answer)
    assert label_tables(local_store) == [], "events are no tables"
    with caplog.at_level(logging.WARNING):
        written = write_label_table(local_store, "vnc")
    assert (written.num_good, written.num_bad, written.num_none, written.conflicts) == (1, 0, 1, ("q",))
    assert "do not agree on 1 patch(es): q" in caplog.text and "do not agree" in written.lines()[1]
    labels, digest = read_labels(local_store)
    assert labels.values.tolist() == [["vnc", "p", "good"], ["vnc", "q", "none"]]
    assert write_label_table(local_store, "vnc") == written and read_labels(local_store)[1] == digest
    record_event(local_store, event(5, "q", "bad", "zoe"))
    assert write_label_table(local_store, "vnc").conflicts == ()


def test_a_table_made_by_hand_is_not_overwritten(local_store: Store):
    record_event(local_store, event(1))
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"dataset": ["vnc"], "name": ["p"], "label": ["bad"]}), sink)
    local_store.put("cem/patch_labels/vnc.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(ValueError, match="by hand"):
        write_label_table(local_store, "vnc")


def test_all_events_that_cannot_be_read_are_named(local_store: Store):
    record_event(local_store, event(1))
    folder = f"{EVENTS}/vnc/ann"
    local_store.put(f"{folder}/a.json", b"{")
    local_store.put(f"{folder}/b.json", event(1).to_bytes())
    local_store.put(f"{folder}/c.json", b" " * 20_000)
    local_store.put(f"{folder}/d.json", b"[1]")
    with pytest.raises(ValueError, match="4 label event") as error:
        LabelLog(local_store, "vnc").refresh()
    for text in ("a.json is no label event", "b.json holds the event of", "c.json has 20000 bytes", "found list"):
        assert text in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a..b", ".a", "a b", "x" * 65, "a\n", "é"])
def test_an_annotator_who_could_leave_the_folder_is_refused(name):
    with pytest.raises(ValueError, match="not allowed"):
        check_annotator(name)


@pytest.mark.parametrize(
    "change",
    [
        {"event_id": "1-2"},
        {"event_id": f"{event_id(1)}/x"},
        {"dataset": "../vnc"},
        {"label": "fine"},
        {"label": "undo"},
        {"undoes": event_id(2)},
        {"classifier": "zz"},
        {"name": ""},
        {"more": 1},
    ],
)
def test_an_answer_that_breaks_a_rule_is_no_event(change):
    fine = event(1).model_dump()
    assert LabelEvent.model_validate(fine) == event(1)
    with pytest.raises(ValueError):
        LabelEvent.model_validate({**fine, **change})
