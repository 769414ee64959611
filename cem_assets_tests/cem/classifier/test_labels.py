"""Label tables: which are refused, and that labels written by hand must name patches that exist."""

import pandas as pd
import pytest

from cem_assets.cem.classifier.labels import decided_labels, labelled_images, read_labels
from cem_assets.errors import DataError
from cem_assets.store.assets import LABELS
from cem_assets.store.store import Store


def table(labels: list[str], names: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"dataset": "d", "name": names or [str(n) for n in range(len(labels))], "label": labels})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["good"] * 40 + ["bad"] * 23, "40 good and 23 bad patches; expected at least 64"),
        (["good"] * 64, "64 good and 0 bad patches; expected at least 2 of each"),
        (["good", "bad", "maybe"] * 40, "labels \\['maybe'\\] are not known"),
    ],
)
def test_label_tables_that_cannot_train(labels, message):
    with pytest.raises(DataError, match=message):
        decided_labels(table(labels))


def test_a_patch_labelled_twice_is_refused():
    with pytest.raises(DataError, match="1 patches are listed more than once"):
        decided_labels(table(["good", "bad"] * 40, ["a", "a", *[str(n) for n in range(78)]]))


def test_undecided_patches_are_left_out():
    kept = decided_labels(table(["good", "bad", "none"] * 40))
    assert len(kept) == 80 and set(kept["label"]) == {"good", "bad"} and kept.index.tolist() == list(range(80))


@pytest.mark.parametrize("data", [b"PAR1 and nothing else", b"PAR1" + bytes(40) + b"PAR1"])
def test_a_damaged_table_is_named(local_store: Store, data):
    local_store.put(f"{LABELS}/mine.parquet", data)
    with pytest.raises(DataError, match="label table cem/patch_labels/mine.parquet cannot be read"):
        read_labels(local_store)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v-LOC-0_99999_0-224_0-224", "has no such place in a volume of"),
        ("v-LOC-0_00_1-225_0-224", "has no such place in a volume of"),
        ("v-LOC-0_00_5-5_0-224", "has no such place in a volume of"),
        ("other-LOC-0_00_0-224_0-224", "has no volume 'other'"),
        ("v", "does not have the form"),
    ],
)
def test_a_label_for_a_patch_that_does_not_exist_is_refused_by_name(curated: Store, name, message):
    with pytest.raises(DataError, match=message) as caught:
        labelled_images(curated, pd.DataFrame({"dataset": ["cells"], "name": [name]}))
    assert repr(name) in str(caught.value)
