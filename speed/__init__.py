"""Benchmarks: each phase beside its peers and the bound that the same run measured."""
