"""What mmengine's Runner costs beside the bare step:  python -m benchmarks.study.runner_overhead

CPU time of this process, so that other work on the machine counts for little.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace

import torch

from benchmarks.study.data import load
from benchmarks.study.runs import quiet
from benchmarks.study.settings import RECIPES, random
from benchmarks.study.training import build, make_runner

EPOCHS = 3


def main() -> None:
    torch.set_num_threads(1)
    quiet()
    recipe = replace(RECIPES["shapes"], epochs=EPOCHS)
    setting, images = random(recipe, 0.5), load(recipe.data, 0).train
    with tempfile.TemporaryDirectory() as folder:
        runner = make_runner(build(setting, 0), images, setting, 0, folder)
        begin = time.process_time()
        runner.train()
        in_runner = (time.process_time() - begin) / runner.iter
        batches = list(runner.train_dataloader)
        begin = time.process_time()
        batches = list(runner.train_dataloader)
        reading = (time.process_time() - begin) / len(batches)
    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    begin = time.process_time()
    for batch in batches * EPOCHS:
        model.loss(batch["inputs"], [])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    bare = (time.process_time() - begin) / (EPOCHS * len(batches))
    print(
        f"ms a step: {1000 * in_runner:.1f} in the Runner, {1000 * bare:.1f} bare, "
        f"{1000 * reading:.1f} to read a batch"
    )


if __name__ == "__main__":
    main()
