"""Analyses of weights: what an encoder answers to, looks at and tells apart. Pure: images and features in, numbers out.

Scores that rank weights are `cem_assets.benchmarks`; indicators during training are `cem_assets.pretraining`.
"""
