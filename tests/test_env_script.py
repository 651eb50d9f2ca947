""".ci/env.sh on a small project: what it takes for there, and what it makes anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.disk_usage(os.environ.get("TMPDIR", "/tmp")).free < 9e9,
        reason="env.sh asks for 8 GB of free space",
    ),
]

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import zipfile
from pathlib import Path

HEAD = "Metadata-Version: 2.1\\nName: tiny\\nVersion: 0\\n"
FILES = dict(WHEEL="Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n", RECORD="")

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "tiny-0-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
        for file, text in dict(FILES, METADATA=HEAD + Path("more").read_text()).items():
            wheel.writestr("tiny-0.dist-info/" + file, text)
    return name
"""
EXTRAS = "Provides-Extra: a\nProvides-Extra: b\n"


@pytest.fixture
def project(tmp_path) -> Path:
    """In a folder with a space in its name."""
    root = tmp_path / "a project"
    (root / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/env.sh", root / ".ci")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "more").write_text(EXTRAS)
    return root


def start(project: Path, extras: str) -> subprocess.Popen:
    """Without an index, so by pip, as wherever uv fails."""
    env = os.environ | dict(
        PYTHON=sys.executable, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull
    )
    return subprocess.Popen(
        ["bash", ".ci/env.sh", "env", extras], cwd=project, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> bool:
    """Whether there was something to do."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return "Setting up" in out


def test_an_environment_is_what_its_project_says(project):
    both = [start(project, extra) for extra in "ab"]  # as make -j does
    assert [finish(process) for process in both] == [True, True]
    for extras in ("a", "b", "a,b", "b,a"):
        assert not finish(start(project, extras))

    (project / "pyproject.toml").write_text(PROJECT + "# other\n")
    (project / "more").unlink()
    failing = start(project, "b")
    _, err = failing.communicate(timeout=300)
    assert failing.returncode == 1
    assert "FileNotFoundError" in err
    assert "error: the installation failed, see above" in err  # not that there is no uv

    (project / "pyproject.toml").write_text(PROJECT)
    (project / "more").write_text(EXTRAS)
    (project / "env/kept").touch()
    assert finish(start(project, "a"))  # the project is what it was, the environment is not
    assert (project / "env/kept").exists()

    (project / "env/.installed").unlink()  # as where the first time was interrupted
    assert finish(start(project, "a"))
    assert not (project / "env/kept").exists()
