"""`dataset.toml`: what is accepted, and that one error names all problems."""

import pytest

from cem_assets.catalog.description import EXAMPLE, DatasetDescription, check_dataset_name, parse_description

GOOD = 'name = "vnc"\nkind = "volume"\nvoxel_size_nm = [45, 4.6, 4.6]\nlicence = "CC0"\ncitation = "A."\n'


def parsed(text: str):
    return parse_description(text.encode(), "inbox/vnc/dataset.toml")


def test_the_example_in_messages_is_valid():
    assert parsed(EXAMPLE).name == "my_dataset"


def test_images_have_a_pixel_size():
    text = GOOD.replace("volume", "images").replace("voxel_size_nm = [45, 4.6, 4.6]", "pixel_size_nm = [4.0, 5.0]")
    assert parsed(text).voxel_size() == (4.0, 4.0, 5.0)


def test_a_byte_order_mark_does_no_harm():
    assert parse_description(b"\xef\xbb\xbf" + GOOD.encode(), "x").name == "vnc"


@pytest.mark.parametrize("name", ["vnc", "a", "0", "emd-3001", "jrc_hela-2.v1", "x" * 63])
def test_allowed_names(name):
    assert check_dataset_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        ".",
        "a..b",
        "../x",
        "a/b",
        "a\\b",
        "a b",
        "a,b",
        "-a",
        "_a",
        ".a",
        "a.",
        "A",
        "zellkörper",
        "x" * 64,
        "x" * 300,
        "a\n",
        "a\0",
    ],
)
def test_refused_names_are_explained(name):
    message = check_dataset_name(name)
    assert message is not None and "expected 1 to 63 of a-z" in message and "Rename the dataset" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("citation", "cite"), 'unknown key "cite"; did you mean "citation"?'),
        (("licence", "license"), 'unknown key "license"; did you mean "licence"?'),
        (("licence", "foo_bar"), 'unknown key "foo_bar"; known keys: name, kind'),
        (('name = "vnc"\n', ""), 'key "name" is missing'),
        (("[45, 4.6, 4.6]", "[0, 4.6, 4.6]"), "voxel_size_nm.0: Input should be greater than 0"),
        (("[45, 4.6, 4.6]", "[-45, 4.6, 4.6]"), "greater than 0"),
        (("[45, 4.6, 4.6]", "[nan, 4.6, 4.6]"), "finite number"),
        (("[45, 4.6, 4.6]", "[4.6, 4.6]"), "voxel_size_nm.2"),
        (("voxel_size_nm = [45, 4.6, 4.6]\n", ""), "needs voxel_size_nm"),
        (('"volume"', '"stack"'), "kind: Input should be 'volume', 'images' or 'video'"),
        (('"vnc"', '"../evil"'), "is not allowed"),
        (('"CC0"', '""'), "licence: String should have at least 1 character"),
    ],
)
def test_problems_are_named_with_the_file(change, message):
    with pytest.raises(ValueError, match=r"inbox/vnc/dataset.toml has \d+ problem") as caught:
        parsed(GOOD.replace(*change))
    assert message in str(caught.value) and "An example:" in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match=r"has 4 problem") as caught:
        parsed('kind = "volume"\nvoxel_size_nm = [0, 1, 1]\nlicense = "x"\ncitation = "y"\n')
    for part in ('"name" is missing', '"licence" is missing', 'unknown key "license"', "greater than 0"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('intensity = "window"\n', "needs intensity_window"),
        ("intensity_window = [1, 2]\n", "only has a meaning"),
        ('intensity = "window"\nintensity_window = [2, 1]\n', "low < high"),
        ("intensity_percentiles = [99, 1]\n", "0 <= low < high <= 100"),
        ('intensity = "gamma"\n', "intensity: Input should be"),
        ("pixel_size_nm = [1, 1]\n", "pixel_size_nm is for images"),
        ("channel = -1\n", "channel"),
    ],
)
def test_options_that_do_not_fit_together(more, message):
    with pytest.raises(ValueError, match="problem") as caught:
        parsed(GOOD + more)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", [b"name = ", b"\xff\xfe", b"a" * 70_000])
def test_files_that_are_no_toml(text):
    with pytest.raises(ValueError, match=r"x/dataset.toml"):
        parse_description(text, "x/dataset.toml")


def test_keys_of_later_versions_leave_no_trace_where_they_are_not_used():
    text = 'name = "d"\nkind = "volume"\nvoxel_size_nm = [8, 8, 8]\nlicence = "x"\ncitation = "x"\n'
    plain = parse_description(text.encode(), "dataset.toml").model_dump()
    assert "sampling" not in plain and "target_voxel_size_nm" not in plain and plain["channel"] is None
    used = parse_description(f"{text}target_voxel_size_nm = 16\n[sampling]\ncube_px = 128\n".encode(), "dataset.toml")
    assert used.model_dump()["sampling"]["cube_px"] == 128 and used.sampling is not None and used.sampling.seed == 0
    assert DatasetDescription.model_validate(used.model_dump()) == used


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ("[sampling]\ncube = 128\n", 'unknown key "sampling.cube"; did you mean "cube_px"?'),
        ("[sampling]\ngigabytes = 0\n", "sampling.gigabytes: Input should be greater than 0"),
        ("target_voxel_size_nm = -1\n", "target_voxel_size_nm: Input should be greater than 0"),
    ],
)
def test_problems_of_sampling_and_binning_are_told(extra, part):
    text = 'name = "d"\nkind = "volume"\nvoxel_size_nm = [8, 8, 8]\nlicence = "x"\ncitation = "x"\n' + extra
    with pytest.raises(ValueError) as caught:
        parse_description(text.encode(), "dataset.toml")
    assert part in str(caught.value)


def test_sampling_is_for_volumes_only():
    text = 'name = "d"\nkind = "images"\npixel_size_nm = [8, 8]\nlicence = "x"\ncitation = "x"\n[sampling]\n'
    with pytest.raises(ValueError, match='takes cubes of volumes; kind = "images" has none'):
        parse_description(text.encode(), "dataset.toml")
