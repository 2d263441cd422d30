#!/usr/bin/env python3
"""A teacher works on prompts with tools; every conversation becomes a file.

    python scripts/run_rollouts.py -n 10 --model gpt-5.2 --browser --dry-run
    python scripts/run_rollouts.py --all --model openai/gpt-5.2 --tools tools.py --max-cost 5

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("run_rollouts")
