"""A store with one release of two plates, made once for all tests."""

import pytest

from cem_assets.store.store import Store, open_store
from cem_assets_tests.cytoimagenet.example_sources import chain, copy_of


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one release. Tests must only read it."""
    store = open_store(str(tmp_path_factory.mktemp("done")))
    chain(store)
    return store


@pytest.fixture
def settled(done: Store, local_store: Store) -> Store:
    """A copy of `done`, in which everything is current; tests may change it."""
    return copy_of(done, local_store)
