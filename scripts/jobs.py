#!/usr/bin/env python3
"""The jobs of this folder: what they do, what they wrote, and their end.

    python scripts/jobs.py
    python scripts/jobs.py log JOB -f
    python scripts/jobs.py cancel JOB

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("jobs")
