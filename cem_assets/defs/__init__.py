"""Dagster: assets, checks, jobs, resources. One module per room; compute lives in `cem_assets.stages`.

Load `cem_assets.definitions`, the front door.
"""
