#!/usr/bin/env python3
"""On-policy distillation: the student answers, the teacher scores every token, the student learns (GOLD, GKD, ULD).

    python scripts/train_gold.py                      # everything from .env, see .env.example
    python scripts/train_gold.py -d train.jsonl -o runs/gold --student student --teacher smollm2 --dry-run
    python scripts/train_gold.py -d train.jsonl -o runs/gold --resume

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("train_gold")
