#!/usr/bin/env python3
"""Prompts in, a teacher's answers out.

    python scripts/generate_teacher_data.py --input prompts.txt --dry-run
    python scripts/generate_teacher_data.py --input prompts.jsonl --model openai/gpt-5.2 --max-cost 5

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("generate_teacher_data")
