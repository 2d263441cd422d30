#!/usr/bin/env python3
"""How two tokenizers fit one another: what share of GOLD's signal will be exact, and where it will not be.

    python scripts/compare_tokenizers.py smollm2 models/qwen2.5-1.5b
    python scripts/compare_tokenizers.py smollm2 teacher.gguf --text train.jsonl --plot overlap.png

--help has all options.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.cli import main

if __name__ == "__main__":
    main("compare_tokenizers")
