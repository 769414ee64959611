"""What the documentation says about the tree: links, paths of code, environment variables, and the assets in the picture."""

import re
from pathlib import Path

import pytest

from cem_assets.store.assets import BENCHMARK_FEATURES, CODE_VERSIONS
from cem_assets_tests.configuration_table import table
from cem_assets_tests.links import documents, problems

ROOT = Path(__file__).parents[1]


def test_every_link_and_path_names_something_that_exists():
    assert len(documents(ROOT)) > 20
    assert problems(ROOT) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# A\n[gone](gone.md)\n", "README.md:2 links to gone.md; there is no such file."),
        ("# A\n[far](docs/b.md#nothing)\n", "README.md:2 links to docs/b.md#nothing; b.md has no such heading."),
        ("# A\n\n![picture](docs/c.png)\n", "README.md:3 links to docs/c.png; there is no such file."),
        ("# A\n[out](../elsewhere.md)\n", "README.md:2 links to ../elsewhere.md; there is no such file."),
        ("# A\n`cem_assets/gone.py`\n", "README.md:2 names cem_assets/gone.py; there is no such file or folder."),
        ("# A\n\n::: cem_assets.gone\n", "README.md:3 shows cem_assets.gone; there is no such module."),
        ("# A\n[ok](docs/b.md#the-b-of-b) [here](#a) `x [y](z)`\n```\n[w](v)\n```\n[web](https://example.org/)\n", None),
    ],
)
def test_broken_links_are_found(tmp_path: Path, text: str, told: str | None):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b.md").write_text("# The `b` of [B](#the-b-of-b)\n")
    (tmp_path / "README.md").write_text(text)
    assert problems(tmp_path) == ([told] if told else [])


def test_the_page_of_variables_lists_exactly_those_that_are_read():
    page = (ROOT / "docs/configuration.md").read_text()
    start = page.index("| variable | meaning | default |")
    assert page[start:].split("\n\n")[0].strip() == table().strip(), "run python -m cem_assets_tests.configuration_table"


def test_the_picture_in_the_readme_shows_every_asset():
    picture = (ROOT / "docs/images/asset_graph.svg").read_text()
    # Kept features are read by scores and are no asset of their own in Dagster.
    assert set(re.findall(r"<title>(.*?)</title>", picture)) == set(CODE_VERSIONS) - {BENCHMARK_FEATURES}
    assert "docs/images/asset_graph.svg" in (ROOT / "README.md").read_text()


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    pages = [str(document.relative_to(ROOT)) for document in documents(ROOT)]
    assert sorted(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)) == sorted(pages)
