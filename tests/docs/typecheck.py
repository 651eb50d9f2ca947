"""What pyright, and so most editors, says of the code that a user pastes: ``make typecheck``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.docs.test_snippets import parse

PAGES = ("README.md", "docs/tutorial.md")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        files = [ROOT / "tests/test_typing.py"]
        for page in PAGES:
            files.append(Path(folder, Path(page).stem.lower()).with_suffix(".py"))
            # One below the other, as they are pasted, each on the lines that it has on the page.
            code = ""
            for example in parse(page).examples():
                first = example.line + example.parsed.line_offset
                code += "\n" * (first - code.count("\n")) + example.parsed
            files[-1].write_text(code)
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *files]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
