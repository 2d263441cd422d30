#!/usr/bin/env python3
"""What is installed, and what a teacher can be asked for.

    python scripts/doctor.py
    python scripts/doctor.py --teacher qwen/qwen-2.5-72b-instruct --teacher-backend openrouter

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("doctor")
