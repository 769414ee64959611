"""The number of bits in which two hashes differ, for the compiled loops of `hamming` and `multi_index`."""

from typing import Any

import numpy as np

from cem_assets.imaging.compiled import kernel

_M1, _M2 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_M4, _H1 = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)


@kernel
def num_different(a: Any, b: Any) -> Any:
    """Return as uint64 how many of the 64 bits of two uint64 differ."""
    # The classic parallel bit count. LLVM recognises it and emits vector popcounts where the CPU has them.
    x = a ^ b
    x = x - ((x >> np.uint64(1)) & _M1)
    x = (x & _M2) + ((x >> np.uint64(2)) & _M2)
    x = (x + (x >> np.uint64(4))) & _M4
    return (x * _H1) >> np.uint64(56)
