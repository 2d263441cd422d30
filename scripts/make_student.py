#!/usr/bin/env python3
"""A smaller student out of a model: fewer layers, another model's tokenizer, or both. Train it afterwards.

    python scripts/make_student.py smollm2 -o student --layers 24
    python scripts/make_student.py student -o student-gpt2 --tokenizer openai-community/gpt2

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("make_student")
