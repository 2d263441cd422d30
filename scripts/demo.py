#!/usr/bin/env python3
"""The main job, offline, with a small real teacher.

    python scripts/demo.py

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("demo")
