"""Tables that `cem/volumes` writes: standardized 2D images with their pixels, and what was refused.

Pixels are stored in an `image` column (a struct of `bytes` and `path`), as HF datasets expects it.
"""

import pyarrow as pa

from cem_assets.store.parquet import IMAGE, schema_of

REJECTED_SCHEMA = schema_of(("what", pa.string()), ("reason", pa.string()), ("num_patches", pa.int64()))
IMAGES_SCHEMA = schema_of(
    ("dataset", pa.string()),
    ("name", pa.string()),
    ("file", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("pixel_size_y_nm", pa.float64()),
    ("pixel_size_x_nm", pa.float64()),
    ("intensity_policy", pa.string()),
    ("source_dtype", pa.string()),
    ("intensity_low", pa.float64()),
    ("intensity_high", pa.float64()),
    ("source_sha256", pa.string()),
    ("notes", pa.string()),
    ("image", IMAGE),
)
