"""EM volumes and images to curated patches: the methods of CEM500K and CEM1.5M.

Each folder is one step of the chain. `cem_assets.cem.assets` puts the steps together as Dagster assets, and
`cem_assets.cem.automation` runs them.
"""
