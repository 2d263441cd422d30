#!/usr/bin/env python3
"""Are these data any good? Every share with its interval, and a file without the rows at fault.

    python scripts/check_data.py train.jsonl
    python scripts/check_data.py train.jsonl --tasks arc_easy,gsm8k --fix clean.jsonl

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("check_data")
