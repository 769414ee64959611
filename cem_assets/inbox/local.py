"""Files of the inbox as local files."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cem_assets.inbox.copies import SourceCopies
from cem_assets.inbox.datasets import dataset_key
from cem_assets.store.store import Store


@contextmanager
def local_paths(
    store: Store, dataset: str, paths: Iterable[str], scratch: Path, kept: SourceCopies | None = None
) -> Iterator[list[Path]]:
    """Give local paths of files of the inbox: the files themselves on a local store, else copies, kept ones or new ones."""
    keys = [dataset_key(dataset, path) for path in paths]
    if store.is_local:
        yield [Path(store.url_of(key)) for key in keys]
        return
    with TemporaryDirectory(dir=scratch) as folder:
        copies = []
        for number, key in enumerate(keys):
            if kept is not None and (copy := kept.of(key)) is not None:
                copies.append(copy)
                continue
            # Numbered folders keep equal file names apart; the name itself is kept for messages and suffixes.
            target = Path(folder) / str(number) / key.rsplit("/", 1)[-1]
            target.parent.mkdir()
            store.download(key, target)
            copies.append(target)
        yield copies
