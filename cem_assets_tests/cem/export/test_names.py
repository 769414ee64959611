"""Names of files for patches are safe and different from each other, and plain names stay as they are."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cem_assets.cem.export.names import clashing_names, name_key, plain_name

SAFE = re.compile(r"[A-Za-z0-9_~][A-Za-z0-9_.~-]*", re.ASCII)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.sampled_from(
    ["..", ".", "", "a/..", "CON", "lpt1.x"]
)


@given(NAMES, st.booleans())
def test_a_name_is_safe_whatever_it_was(name, has_dots):
    found = plain_name(name, has_dots=has_dots)
    assert SAFE.fullmatch(found) and len(found.encode()) <= 180 and not found.startswith("~") and not found.endswith(".")
    assert has_dots or "." not in found
    assert found.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt1"}


@given(NAMES, NAMES)
def test_other_names_give_other_files(first, second):
    assert (plain_name(first) == plain_name(second)) == (first == second)


@pytest.mark.parametrize("name", ["vnc-LOC-0_001_0-224_0-224", "a.b_c-1", "0", "x" * 180])
def test_a_plain_name_stays(name):
    assert plain_name(name) == name


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("data", {"taken": {"data"}}),
        ("Data", {"taken": {"data"}}),
        ("a.b", {"has_dots": False}),
        ("case", {"is_clashing": True}),
    ],
)
def test_a_plain_name_that_will_not_do_gets_a_digest(name, keywords):
    flat = name.replace(".", "_")
    assert re.fullmatch(rf"{flat}~[0-9a-f]{{16}}", plain_name(name, **keywords))


def test_a_made_up_name_cannot_take_the_place_of_another():
    other = plain_name("a/b")
    assert plain_name(other) != other, "a name with the mark of a digest is not plain"


@given(st.lists(st.sampled_from(["a", "A", "b", "ab", "AB", "aB", "C"]), unique=True))
def test_names_that_differ_in_case_alone_clash(names):
    found = clashing_names(names)
    for name in names:
        others = [other for other in names if other != name and other.lower() == name.lower()]
        assert (name_key(name) in found) == bool(others)
    files = [plain_name(name, is_clashing=name_key(name) in found).lower() for name in names]
    assert len(set(files)) == len(names)


def test_a_name_that_comes_twice_is_told():
    with pytest.raises(ValueError, match="2 of 5 names of patches occur twice"):
        clashing_names(["a", "b", "a", "A", "b"])
