"""`python -m coapgate.cli`."""

from __future__ import annotations

import sys

from coapgate.cli import main

if __name__ == "__main__":
    sys.exit(main())
