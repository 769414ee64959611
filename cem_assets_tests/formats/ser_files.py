"""Writes TIA series by the definition of their layout, for tests: a header, images, and tables of offsets at the end."""

import struct

import numpy as np

TYPES = {"uint8": 1, "uint16": 2, "uint32": 3, "int8": 4, "int16": 5, "int32": 6, "float32": 7, "float64": 8}


def ser_bytes(
    images: np.ndarray, version: int = 0x220, kind: int = 0x4122, metres: tuple[float, float] = (4e-9, 4e-9)
) -> bytes:
    """Return a series of images (n, y, x); `metres` are the sizes of a pixel along y and x."""
    wide = "Q" if version >= 0x220 else "I"
    dimension = struct.pack("<IddII", len(images), 0.0, 1.0, 0, 6) + b"Number" + struct.pack("<I", 0)
    body, offsets = b"", []
    begin = 22 + struct.calcsize(f"<{wide}") + 4 + len(dimension)
    for image in images:
        offsets.append(begin + len(body))
        body += struct.pack("<ddi", -1e-6, metres[1], 0) + struct.pack("<ddi", -1e-6, metres[0], 0)
        body += struct.pack("<hii", TYPES[image.dtype.name], image.shape[1], image.shape[0])
        body += np.ascontiguousarray(image, image.dtype.newbyteorder("<")).tobytes()
        body += struct.pack("<HHI", 0x4152, 0, 1_600_000_000)  # a tag follows each image, which we do not read
    head = b"II" + struct.pack("<HHIIII", 0x0197, version, kind, 0x4152, len(images), len(images))
    head += struct.pack(f"<{wide}I", begin + len(body), 1) + dimension
    return head + body + struct.pack(f"<{2 * len(images)}{wide}", *offsets, *offsets)
