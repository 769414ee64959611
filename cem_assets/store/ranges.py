"""Objects of the store as files for pyarrow, which reads ranges of them."""

from typing import Any

import pyarrow as pa

from cem_assets.errors import DataError
from cem_assets.store.store import Store


def opened(store: Store, key: str, num_bytes: int) -> Any:
    """Open an object so that each read of pyarrow's is one request for exactly that range; nothing is read ahead.

    Args:
        num_bytes: The size of the object, as it was listed.
    """
    if store.is_local:
        return pa.OSFile(store.url_of(key))
    return pa.PythonFile(_Ranges(store, key, num_bytes), "r")


class _Ranges:
    """A file object over an object of a store; each read requests a range."""

    def __init__(self, store: Store, key: str, num_bytes: int) -> None:
        self._store, self._key, self._num_bytes = store, key, num_bytes
        self._place = 0
        self.closed = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._num_bytes)[whence]
        return self._place

    def read(self, num_bytes: int = -1) -> Any:
        left = max(0, self._num_bytes - self._place)
        wanted = left if num_bytes < 0 else min(left, num_bytes)
        if not wanted:
            return b""
        data, found = self._store.read_range(self._key, self._place, wanted)
        if found != self._num_bytes:
            raise DataError(f"it has {found} bytes now, and had {self._num_bytes} when it was opened")
        self._place += wanted
        return data

    def close(self) -> None:
        self.closed = True
