"""Cost of `--help`: its CPU against that of importing pydantic and cyclopts alone, in turns.

    python -m tests.bench.bench_help [--repeat 10]

Prints one JSON report, and leaves with 0 when its criterion holds.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from .harness import SCRIPT, finish, load, measure, succeeded

MOST = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10)
    repeat = parser.parse_args().repeat
    help_command = [sys.executable, str(SCRIPT), "--help"]
    import_command = [sys.executable, "-c", "import pydantic, cyclopts"]
    helps: list[float] = []
    imports: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for command in (help_command, import_command):  # compiles what has to be compiled
            succeeded(measure(command, Path(folder)))
        for _ in range(repeat):
            helps.append(succeeded(measure(help_command, Path(folder))).cpu_s)
            imports.append(succeeded(measure(import_command, Path(folder))).cpu_s)
    help_ms, import_ms = 1000 * statistics.median(helps), 1000 * statistics.median(imports)
    finish(
        {
            "help_cpu_ms": round(help_ms, 1),
            "import_cpu_ms": round(import_ms, 1),
            "ratio": round(help_ms / import_ms, 3),
            "load": load(),
            "criteria": {f"--help <= {MOST} x importing pydantic and cyclopts": help_ms <= MOST * import_ms},
        }
    )


if __name__ == "__main__":
    main()
