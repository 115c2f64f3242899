"""python -m ticketry"""

from __future__ import annotations

import sys

from ticketry.cli import main

if __name__ == "__main__":
    sys.exit(main())
