#!/usr/bin/env python3
"""The command line of the server: `python PATH/mcp_server/__main__.py` from any folder, or `python -m mcp_server`.

Any Python from 3.8 on does: core/bootstrap.py finds one that has the packages, or makes it an environment.
--help has all options.
"""

import os
import sys

# In the place of the current folder (-m), where a stranger's json.py may lie, or of this one, where http.py does.
ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path[: 0 if getattr(sys.flags, "safe_path", False) else 1] = [ROOT]

import runpy  # noqa: E402

if __name__ == "__main__":
    runpy.run_path(os.path.join(ROOT, "core", "bootstrap.py"))["serve"](ROOT, sys.argv[1:])
    from core.cli import main

    main("mcp_server")
