"""SPDX pages of licences, and media types."""

import pytest

from cem_assets.cem.export.facts import licence_url, media_type


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("CC0-1.0", "CC0-1.0"),
        ("cc0", "CC0-1.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        (" cc_by-sa  4.0 ", "CC-BY-SA-4.0"),
        ("CC BY", ""),
        ("CC BY 4.0, except figure 3", ""),
        ("ask the authors", ""),
    ],
)
def test_only_words_that_name_a_licence_exactly_get_its_page(words, name):
    assert licence_url(words) == (f"https://spdx.org/licenses/{name}" if name else "")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/b.tiff", "image/tiff"),
        ("x.tar", "application/x-tar"),
        ("d.x/part.parquet", "application/x-parquet"),
        ("SUMS", "text/plain"),
    ],
)
def test_media_types_go_by_the_end_of_the_name(path, kind):
    assert media_type(path) == kind
