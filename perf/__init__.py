"""Benchmarks. Every figure is a ratio measured in one run, because machines are noisy. `make bench` runs all of them."""
