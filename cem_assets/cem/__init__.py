"""EM volumes and images to curated patches: the methods of CEM500K and CEM1.5M.

Pure numpy and torch. Volumes come in as objects with `.read(...)`, tables leave as arrays; where they
lie is `cem_assets.storage`, what runs when is `cem_assets.cem.assets`.
"""
