"""``python -m amn_masking configs``: see :mod:`amn_masking.tools.shipped`."""

import sys

from amn_masking.tools.shipped import main

if __name__ == "__main__":
    sys.exit(main())
