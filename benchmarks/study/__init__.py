"""A fair comparison of masking strategies at a size for two CPU cores.

    python -m benchmarks.study run EXPERIMENT [--seeds 0 1 2] [--jobs 2] [--sets shapes]
    python -m benchmarks.study run cifar [--seeds 100] [--data FOLDER]
    python -m benchmarks.study search | steps | matrix
    python -m benchmarks.study tables
    python -m benchmarks.study smoke

``run`` trains mmpretrain's MAE with mmengine's Runner, once for each setting of the experiment
(experiments.py) and seed that has no row in docs/results/study_EXPERIMENT.csv. It may be killed at
any time and called again. Seeds below 100 are for tuning, the others for reports, on other images
(data.py). ``tables`` writes docs/results/study.md and its figures from these files. ``smoke`` runs
the smallest experiment anew in a folder of its own and prints its numbers beside the committed.

``cifar`` is CIFAR-10, from FOLDER/train/CLASS/FILE and FOLDER/test/CLASS/FILE or by torchvision;
its recipe is another on a GPU. ``tables`` writes docs/results/cifar.md, too.

``search`` looks for better options of the learned mask, ``steps`` times a step of each strategy in
turns, ``matrix`` tests each autoencoder under the masks of all strategies.

To study another strategy, or another option of one, add a ``Setting`` with its ``masking=`` config
to an experiment. Settings are recorded with each row; tables take the rows of the settings that
an experiment has now.
"""
