"""What `mim train amn_masking CONFIG` starts in an installed wheel: mmpretrain's own script."""

import runpy
from pathlib import Path

import mmpretrain

runpy.run_path(str(Path(mmpretrain.__file__).parent / ".mim/tools/train.py"), run_name="__main__")
