"""Optimisers for networks with binary kernels: Larq's `Bop` and `CaseOptimizer`, and AdamW as the paper uses it."""
