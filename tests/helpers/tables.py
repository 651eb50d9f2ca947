"""What a page's tables say, however wide their columns are."""

from __future__ import annotations

import re


def narrow(text: str) -> str:
    """The text with each run of blanks in a line as one blank."""
    return re.sub(" +", " ", text)
