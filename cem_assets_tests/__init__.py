"""Tests of cem_assets; the tree mirrors the package. `make test` runs them, `make soak` the long ones."""
