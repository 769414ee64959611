"""What several rooms need of a picture: difference hashes, Hamming search, intensity policies.

Pure numpy and numba. Nothing here knows of files, stores or Dagster; for those see
`cem_assets.storage` and `cem_assets.defs`.
"""
