"""Train a config of mmpretrain with a line per epoch:  python demo/train.py CONFIG WORK_DIR

The same training as by ``mim train mmpretrain CONFIG --work-dir WORK_DIR``, without its log on the
screen; the numbers go to WORK_DIR as ever.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore")  # of what OpenMMLab imports; nothing that a demo can mend

from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402


class EpochLine(Hook):
    """Prints the loss and the gain of the last measurement after each epoch."""

    def before_train(self, runner: Runner) -> None:
        self.start = time.monotonic()

    def after_train_epoch(self, runner: Runner) -> None:
        done = runner.epoch + 1
        left = (time.monotonic() - self.start) * (runner.max_epochs / done - 1)
        scalars: dict[str, Any] = runner.message_hub.log_scalars
        loss = scalars["train/reconstruction"].mean(len(runner.train_dataloader))
        line = f"epoch {done:3d}/{runner.max_epochs}  reconstruction {loss:.3f}"
        if "train/adversarial_gain" in scalars:
            line += f"  adversarial gain {scalars['train/adversarial_gain'].current():.2f}"
        print(f"{line}  {left:4.0f} s left", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("work_dir")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    args = parser.parse_args()
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options)
    config.work_dir = args.work_dir
    config.log_level = "ERROR"
    runner = Runner.from_cfg(config)
    runner.register_hook(EpochLine(), priority="LOWEST")
    runner.train()


if __name__ == "__main__":
    main()
