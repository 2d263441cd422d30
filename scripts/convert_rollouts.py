#!/usr/bin/env python3
"""Rollouts in, train.jsonl out.

    python scripts/convert_rollouts.py -d rollouts -o train.jsonl
    python scripts/convert_rollouts.py --best-of 1 --dedupe --val-split 0.05

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("convert_rollouts")
