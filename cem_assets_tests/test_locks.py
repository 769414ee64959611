"""The lock files fit together and to `pyproject.toml`, and every package that the code imports is declared there."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE_OF = {
    "requirements-dev.lock": "requirements.lock",
    "requirements-ray.lock": "requirements.lock",
    "requirements-bench.lock": "requirements-dev.lock",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement: str) -> str:
    """Return the normalized name in a requirement such as "ray[default]>=2.60,<2.61"."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def locked(file: str) -> dict[str, tuple[str, int]]:
    """Read the version of every package in a lock file, and how many hashes it has."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if not line.startswith("-r ")]
    return {words[0].split("==")[0]: (words[0].split("==")[1], num_hashes_in(words)) for words in lines}


def num_hashes_in(words: list[str]) -> int:
    return sum(word.startswith("--hash=sha256:") for word in words)


@pytest.mark.parametrize("file", ["requirements.lock", *BASE_OF])
def test_a_lock_file_has_a_hash_for_every_package_and_names_no_host(file):
    found = locked(file)
    assert found and all(num_hashes for _, num_hashes in found.values())
    assert "://" not in (ROOT / file).read_text()


@pytest.mark.parametrize(("file", "base"), BASE_OF.items())
def test_a_layered_lock_file_includes_its_base_and_changes_no_version_of_it(file, base):
    lines = (ROOT / file).read_text().splitlines()
    assert [line for line in lines if line.startswith("-r")] == [f"-r {base}"] == lines[:1]
    known, added = locked(base), locked(file)
    assert {name: added[name][0] for name in added if name in known} == {
        name: known[name][0] for name in added if name in known
    }
    whole = [line for line in lines if re.match(r"[a-z0-9]", line)]
    assert not set(whole) & set((ROOT / base).read_text().splitlines()), "a line of the base is repeated; run make lock"


def test_every_declared_package_is_locked():
    groups = PROJECT["dependency-groups"]
    wanted = {
        "requirements.lock": PROJECT["project"]["dependencies"],
        "requirements-ray.lock": PROJECT["project"]["optional-dependencies"]["ray"],
        "requirements-dev.lock": groups["dev"],
        "requirements-bench.lock": [item for item in groups["bench"] if isinstance(item, str)],
    }
    for file, requirements in wanted.items():
        names = set(locked(file)) | set(locked("requirements.lock"))
        assert {name_of(requirement) for requirement in requirements} <= names, file


def imported_modules(folder: str) -> set[str]:
    """Collect the top-level names that the files of a folder import, without this repository's own and Python's."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"cem_assets", "cem_assets_tests", "perf"}


@pytest.mark.parametrize("folder", ["cem_assets", "cem_assets_tests", "examples"])
def test_every_package_that_is_imported_is_declared(folder):
    declared = {name_of(item) for item in PROJECT["project"]["dependencies"]} | {"ray"}
    if folder != "cem_assets":
        declared |= {name_of(item) for item in PROJECT["dependency-groups"]["dev"]}
    distributions = packages_distributions()
    undeclared = [
        module
        for module in sorted(imported_modules(folder))
        if not {name_of(name) for name in distributions.get(module, [module])} & declared
    ]
    assert undeclared == []
