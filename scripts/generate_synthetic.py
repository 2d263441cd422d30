#!/usr/bin/env python3
"""Training data from nothing but a domain: questions that differ, answers that are checked.

    python scripts/generate_synthetic.py --num-records 100 --backend openai --output-dir synthetic_datasets --dry-run
    python scripts/generate_synthetic.py --domain finance --num-records 1000 --max-cost 5

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("generate_synthetic")
