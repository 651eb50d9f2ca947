"""The shipped configs are found, and a copy of one works where it is put."""

from __future__ import annotations

import subprocess
import sys

import pytest

from amn_masking.tools.shipped import main
from tests.conftest import ROOT

NAMES = [
    "benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py",
    "benchmarks/vit-tiny_finetune_photos.py",
    "mae_amn_vit-b.py",
    "mae_amn_vit-tiny_photos_2xcpu.py",
]


def test_the_list_has_names_and_what_they_are(capsys):
    assert main(["configs"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"in {ROOT / 'configs/mmpretrain'}")
    assert all(name in said for name in NAMES)
    assert "MAE ViT-B/16 on ImageNet-1k, 300 epochs" in said
    assert "_base_" not in said


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_config_and_is_complete(name, tmp_path):
    pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
    from mmengine.config import Config

    assert main(["configs", name, "--to", str(tmp_path)]) == 0
    # Without its custom_imports, which are for the process that trains.
    copy, shipped = (
        Config.fromfile(path, import_custom_modules=False)
        for path in (tmp_path / name, ROOT / "configs/mmpretrain" / name)
    )
    assert copy.to_dict() == shipped.to_dict()


def test_a_file_of_the_user_s_is_not_overwritten(tmp_path, capsys):
    options = ["configs", "mae_amn_vit-b.py", "--to", str(tmp_path)]
    main(options)
    main(options)  # the same again is no change
    (tmp_path / "mae_amn_vit-b.py").write_text("mine")
    with pytest.raises(SystemExit):
        main(options)
    assert "is there already and differs" in capsys.readouterr().err
    assert (tmp_path / "mae_amn_vit-b.py").read_text() == "mine"


def test_an_unknown_name_says_which_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["configs", "mae.py"])
    assert "expected one of benchmarks/" in capsys.readouterr().err


def test_from_the_command_line():
    command = [sys.executable, "-m", "amn_masking", "configs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0
    assert "mae_amn_vit-b.py" in done.stdout
