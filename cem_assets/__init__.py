"""cem_assets: Dagster assets that turn raw microscopy into pretraining sets, weights and benchmark scores.

To read what the platform wrote, import `cem_assets.readers`. Dagster loads `cem_assets.definitions`. `docs/architecture.md`
describes the folders of this package.
"""

__version__ = "0.1.0"
