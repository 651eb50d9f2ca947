"""Benchmarks: what a strategy costs, how an estimator errs, what a mask is worth."""
