"""The table of EM datasets: its contents, and the errors for broken rows."""

import csv
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from cem_assets.catalog import em_datasets, parse_em_datasets
from cem_assets.catalog.description import parse_description
from cem_assets.sources.volumes.objects import http_address

TEXT = files("cem_assets.catalog").joinpath("em_datasets.csv").read_text(encoding="utf-8")


def test_all_public_volumes_of_the_reference_are_in_the_catalogue(test_data: Path):
    table = test_data / "metadata/cem_dataset/ngff_datasets.csv"
    theirs = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    assert len(theirs) == 45
    for row in theirs:
        ours = em_datasets()[row["volume_name"]]
        assert ours.remote is not None and not ours.is_enabled
        assert ours.remote.url == row["download_url"].removeprefix("precomputed://")
        assert (ours.remote.scale, ours.remote.cube_px) == (int(row["mip"]), int(row["crop_size"]))
        assert (ours.remote.is_inverted, ours.remote.is_cropped) == (row["invert"] == "TRUE", row["crop"] == "TRUE")
        assert ours.remote.padding_value == int(row["padding_value"])
        sizes = [row[f"voxel_{axis}"] for axis in "zyx"]
        assert ours.voxel_size_nm == (None if "x" in sizes else tuple(float(size) for size in sizes))
        assert ours.source_url == (row["url"] or "https://registry.opendata.aws/open-neurodata/")


def test_every_row_can_become_a_description_with_licence_and_citation():
    rows = em_datasets()
    assert len(rows) == 46 and len(rows["vnc"].files) > 0 and rows["vnc"].remote is None
    for row in rows.values():
        described = parse_description(row.description_toml(row.voxel_size_nm or (1.0, 1.0, 1.0)).encode(), row.name)
        assert described.name == row.name and described.licence and len(described.citation) > 40
        if row.remote is not None:
            assert http_address(row.remote.url)[0].startswith("https://")
    licences = {row.licence for row in rows.values() if "openorganelle" in row.name}
    assert licences == {"CC BY 4.0"}


def test_a_row_without_voxel_size_needs_that_of_its_volume():
    row = em_datasets()["bock2011"]
    with pytest.raises(ValueError, match="does not know the voxel size of 'bock2011'"):
        row.description_toml()
    assert "voxel_size_nm = [45.0, 8.0, 8.0]" in row.description_toml((45.0, 8.0, 8.0))


GOOD = {
    "name": "a", "enabled": "no", "kind": "volume", "z_nm": "4", "y_nm": "4", "x_nm": "4", "licence": "CC0",
    "citation": "A 2026",
    "remote_url": "s3://b/c", "remote_format": "n5", "scale": "0", "crop": "yes", "cube_px": "256", "invert": "no",
    "padding_value": "0", "gigabytes": "5",
}  # fmt: skip


def table(*rows: dict[str, str]) -> str:
    columns = TEXT.splitlines()[0].split(",")
    return "\n".join([",".join(columns), *(",".join(row.get(column, "") for column in columns) for row in rows)]) + "\n"


def parsed(*rows: dict[str, str]):
    return parse_em_datasets(table(*rows), lambda name: {"r.txt": "f.tif 00\n# no\n"}[name])


def test_a_good_row_is_read():
    assert parsed(GOOD)["a"].remote.gigabytes == 5.0
    local = {key: value for key, value in GOOD.items() if key in list(GOOD)[:8]} | {
        "registry": "r.txt",
        "base_url": "https://x/",
    }
    assert parsed(local)["a"].files == {"f.tif": "00"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "A b"}, "name is 'A b'"),
        ({"enabled": "maybe"}, "enabled is 'maybe'; expected yes or no"),
        ({"kind": "remote"}, "kind is 'remote'"),
        ({"licence": ""}, "licence and citation must be given"),
        ({"z_nm": "-4"}, "z_nm is '-4'; expected a positive number"),
        ({"remote_url": "/etc"}, "remote_url is '/etc'"),
        ({"remote_url": "s3://b/"}, "without a slash at its end"),
        ({"remote_format": "tiff"}, "remote_format is 'tiff'"),
        ({"scale": "-1"}, "scale is '-1'; expected a whole number"),
        ({"gigabytes": "inf"}, "gigabytes is 'inf'"),
        ({"gigabytes": "lots"}, "gigabytes is 'lots'"),
        ({"invert": ""}, "invert is ''"),
        ({"base_url": "https://x/"}, "both remote_url and base_url"),
        ({"remote_url": ""}, "only have a meaning with remote_url"),
        ({"gigabytes": "5,6"}, "expected 22 cells"),
    ],
)
def test_a_broken_row_is_told_with_its_line(change: dict[str, str], message: str):
    with pytest.raises(ValueError, match=r"(?s)has 1 problem\(s\):.*line 3") as caught:
        parsed({**GOOD, "name": "b"}, {**GOOD, **change})
    assert message in str(caught.value)


def test_all_problems_are_told_at_once_and_a_name_must_be_unique():
    with pytest.raises(ValueError, match=r"2 problem\(s\)(?s:.*)another row has the same name"):
        parsed(GOOD, GOOD, {**GOOD, "name": "c", "scale": "x"})
    with pytest.raises(ValueError, match="has columns"):
        parse_em_datasets("name,enabled\n", lambda name: "")


def test_every_row_is_told_of_in_the_table_of_sources():
    from pathlib import Path

    from cem_assets.catalog.microscopy import microscopy_sources

    text = (Path(__file__).parents[2] / "docs/sources.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert [name for name in (*em_datasets(), *microscopy_sources()) if name not in rows] == []


def test_images_of_the_catalogue_have_the_size_of_a_pixel():
    row = replace(next(iter(em_datasets().values())), kind="images", voxel_size_nm=(1.0, 4.0, 4.5))
    assert "pixel_size_nm = [4.0, 4.5]" in row.description_toml() and "voxel_size_nm" not in row.description_toml()
