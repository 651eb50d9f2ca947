"""A fair comparison of masking strategies at a size for two CPU cores.

    python -m benchmarks.study run EXPERIMENT [--seeds 0 1 2] [--jobs 2]
    python -m benchmarks.study tables
    python -m benchmarks.study smoke

It drives mmpretrain's MAE and mmengine's Runner. See experiments.py for what there is to run.
"""
