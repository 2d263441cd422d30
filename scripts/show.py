#!/usr/bin/env python3
"""Rows and rollouts, as a person would look at them.

    python scripts/show.py rollouts --failed
    python scripts/show.py train.jsonl --sample 3 --html rows.html

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("show")
