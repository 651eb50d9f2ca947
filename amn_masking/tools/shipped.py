"""``python -m amn_masking configs``: the configs that come with the package.

    python -m amn_masking configs                                   lists them
    python -m amn_masking configs mae_amn_vit-b.py --to my_configs  copies one, with its bases

mim and mmengine look for configs in OpenMMLab's own packages and in the working directory only, so
a config is copied to where the training is started.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def configs_root() -> Path | None:
    """The folder that holds ``configs``; None if they were left out.

    An installed wheel has them in ``amn_masking/.mim``, as OpenMMLab's packages do; in a checkout
    they are beside the package.
    """
    roots = (PACKAGE / ".mim", PACKAGE.parent)
    return next((root for root in roots if (root / "configs/mmpretrain").is_dir()), None)


def first_line(config: Path) -> str:
    """What a config says that it is."""
    return config.read_text().splitlines()[0].lstrip("# ")


def with_bases(config: Path) -> list[Path]:
    """A config and those of its bases that are files, with theirs."""
    found = [config]
    (bases,) = re.findall(r"^_base_ = (\[.*?\]|.*?)$", config.read_text(), re.M | re.S)[:1] or [""]
    for base in re.findall(r"\"([^\":]+\.py)\"", bases):
        found += with_bases((config.parent / base).resolve())
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m amn_masking", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    configs = commands.add_parser("configs", help="list the shipped configs, or copy one")
    configs.add_argument("name", nargs="?", help="of a config; none: list them")
    configs.add_argument("--to", type=Path, default=Path(), help="folder; the one you are in")
    args = parser.parse_args(arguments)

    root = configs_root()
    if root is None:
        parser.error(
            f"expected configs in or beside {PACKAGE}, found none; install the package anew"
        )
    folder = root / "configs/mmpretrain"
    names = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*.py"))
        if "_base_" not in path.parts
    }
    if args.name is None:
        print(f"in {folder}:\n")
        for name, path in names.items():
            print(f"{name}\n    {first_line(path)}")
        return 0
    if args.name not in names:
        parser.error(f"there is no config {args.name!r}; expected one of {', '.join(names)}")
    for path in dict.fromkeys(with_bases(names[args.name])):
        target = args.to / path.relative_to(folder)
        if target.exists() and target.read_bytes() != path.read_bytes():
            parser.error(f"{target} is there already and differs; move it, or name another --to")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        print(target)
    return 0
