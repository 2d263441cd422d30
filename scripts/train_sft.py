#!/usr/bin/env python3
"""A student learns a teacher's answers or rollouts (SFT), as config.yml says. The same file is `rnow run`'s.

    python scripts/train_sft.py --check
    python scripts/train_sft.py -c config.yml -o runs/sft --dry-run
    python scripts/train_sft.py -d train.jsonl --model smollm2 --qlora-rank 16 -o runs/sft
    accelerate launch --multi_gpu --num_processes 2 scripts/train_sft.py -c config.yml -o runs/sft

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("train_sft")
