"""One function per asset: read, compute, commit. No Dagster here.

A stage takes a store and parameters and returns the manifest it committed, so the same code runs under
Dagster (`cem_assets.defs`), in tests and in a plain script. What a method is lives in the method rooms
(`cem_assets.cem`), how bytes are kept in `cem_assets.storage`.
"""
