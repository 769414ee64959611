"""The progress bar of the command line: one for the stage at hand."""

import sys
from typing import Any


class StageBars:
    """One progress bar for the stage at hand, drawn on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ("", "")

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, asset: str, partition: str, done: int, total: int) -> None:
        """Draw progress of a stage; a new stage closes the bar of the last one."""
        from tqdm import tqdm

        if self._stage != (asset, partition):
            self.close()
            self._stage = (asset, partition)
            name = f"{asset} {partition}".strip()
            self._bar = tqdm(total=total, desc=f"{name:40.40}", leave=True, file=sys.stderr, mininterval=0.5)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Finish the bar at hand."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ("", "")
