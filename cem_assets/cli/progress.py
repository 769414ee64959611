"""The progress bar of the command line, one for the current stage."""

import sys
from typing import Any


class StageBars:
    """A progress bar for the current stage, drawn on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ("", "")

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, asset: str, partition: str, done: int, total: int) -> None:
        """Show the progress of a stage; a new stage closes the bar of the one before."""
        from tqdm import tqdm

        if self._stage != (asset, partition):
            self.close()
            self._stage = (asset, partition)
            name = f"{asset} {partition}".strip()
            self._bar = tqdm(total=total, desc=f"{name:40.40}", leave=True, file=sys.stderr, mininterval=0.5)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Finish the current bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ("", "")
