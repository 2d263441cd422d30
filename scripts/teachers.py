#!/usr/bin/env python3
"""Which teachers there are today, and what they cost: read from the live price list.

    python scripts/teachers.py
    python scripts/teachers.py --input prompts.txt --max-tokens 800

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("teachers")
