"""Where things lie: keys, bytes, formats, manifests.

The only room that knows fsspec, s3fs, tifffile, zarr and pyarrow. It writes what the method rooms
compute (`cem_assets.cem` and its siblings) and reads what curators drop into the inbox. The layout and
the commit protocol are described in `docs/store.md`.
"""
