#!/usr/bin/env python3
"""The command line of the server: `python -m mcp_server`, or `python PATH/mcp_server` from any folder.

--help has all options.
"""

import os
import sys

# In the place of the current folder (-m), where a stranger's json.py may lie, or of this one, where http.py does.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[: 0 if sys.flags.safe_path else 1] = [ROOT]

import importlib.util  # noqa: E402

from core.cli import main  # noqa: E402
from core.errors import ExitCode, MissingDependency  # noqa: E402

INSTALL = "pip install -c constraints.txt -e '.[mcp]'"

if __name__ == "__main__":
    if importlib.util.find_spec("mcp") is None and not {"--help", "-h"} & {*sys.argv}:
        print(f"mcp_server: error: {MissingDependency('mcp', 'the server', INSTALL)}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    main("mcp_server")
