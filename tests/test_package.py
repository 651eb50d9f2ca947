"""What is published: built, checked, and used in an environment that does not know the checkout."""

from __future__ import annotations

import email
import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import amn_masking
from tests.conftest import ROOT
from tests.docs.test_snippets import parse

pytestmark = pytest.mark.slow


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of a new environment with the wheel. What it depends on is that of the tests."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    install = ["--quiet", "install", "--no-deps", "--no-index", wheel]
    run(sys.executable, "-m", "pip", "--python", python, *install)
    # A .pth that such a folder holds, as the checkout's own, is not followed.
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python


def test_an_index_would_take_it(built):
    assert len(list(built.iterdir())) == 2
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_holds_the_package_and_the_configs_and_nothing_else(wheel):
    moved = {
        "amn_masking": "amn_masking",
        "configs/mmpretrain": "amn_masking/.mim/configs/mmpretrain",
        "configs/mim": "amn_masking/.mim",
    }
    expected = {
        f"{there}/{path.relative_to(ROOT / here).as_posix()}"
        for here, there in moved.items()
        for path in (ROOT / here).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert "amn_masking/py.typed" in names


def test_the_sdist_holds_what_the_tests_need_and_no_data(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        found = {Path(name).parts[1] for name in archive.getnames()}
    assert {"amn_masking", "configs", "tests", ".ci", ".github", "Makefile"} <= found
    assert not {".git", ".venv", "data", "dist", "work_dirs"} & found


def test_the_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    data = email.message_from_bytes(archive.read(name))
    assert data["Version"] == amn_masking.__version__
    assert data["Description-Content-Type"] == "text/markdown"
    extras = {"mmpretrain", "onedl", "timm", "huggingface", "lightly", "viz"}
    assert extras <= set(data.get_all("Provides-Extra"))
    required = [line for line in data.get_all("Requires-Dist") if "extra ==" not in line]
    assert required == ["torch>=2.1"]


def test_the_script_of_readme_trains_with_the_wheel_alone(python, tmp_path):
    script, _ = parse("README.md").examples()
    assert script.parsed.count("range(501)") == 1
    code = script.parsed.replace("range(501)", "range(2)") + (
        "import amn_masking, importlib.util\n"
        "print(amn_masking.__file__)\n"
        "assert not importlib.util.find_spec('benchmarks')\n"
    )
    (tmp_path / "script.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = run(python, "script.py", cwd=tmp_path, env=environment).splitlines()
    assert said[0].startswith("step 0: error ")
    assert Path(said[1]).is_relative_to(python.parents[1])
