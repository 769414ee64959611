"""cem_assets: raw microscopy to pretraining sets, weights and benchmark scores, as Dagster assets.

The package is a house of rooms, described in `docs/architecture.md`. People who only read what the
platform wrote need `cem_assets.readers`; Dagster loads `cem_assets.definitions`.
"""

__version__ = "0.1.0"
