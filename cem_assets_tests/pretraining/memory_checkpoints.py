"""A checkpoint store in memory, for tests of the training loop."""


class MemoryCheckpoints:
    """Keeps the state in this process.

    Attributes:
        data: The newest state.
        num_saved: How often one was saved.
    """

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.num_saved = 0

    def save(self, data: bytes) -> None:
        """Replace the state."""
        self.data = data
        self.num_saved += 1

    def load(self) -> bytes | None:
        """Return the newest state; None where nothing was saved yet."""
        return self.data
