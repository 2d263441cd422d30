#!/usr/bin/env python3
"""A student against its baseline on the same items: paired differences with intervals, plots, a report.

    python scripts/evaluate.py                      # KD_MODEL_PATH and BASE_MODEL_ID from .env, see .env.example
    python scripts/evaluate.py --student runs/gold/best --baseline student --teacher smollm2 --data test.jsonl
    python scripts/evaluate.py --compare reports/monday --compare reports/tuesday

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("evaluate")
