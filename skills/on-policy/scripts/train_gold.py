#!/usr/bin/env python3
"""Finds the bundle that this skill belongs to and runs its script of the same name. Options: --help.

The bundle is $DISTILL_HOME, the tree around this file, or the assistant's plugin folder. Any Python from 3.8 on does:
core/bootstrap.py there finds one that can run the script, or makes it an environment.
"""

import os
import runpy
import sys

HERE = os.path.realpath(__file__)
NAME = os.path.basename(HERE)
PLUGINS = ("CLAUDE_PLUGIN_ROOT", "PLUGIN_ROOT", "COPILOT_PLUGIN_ROOT")


def is_bundle(root):
    """Whether a folder holds the script, what starts it and a skill of ours: another plugin's folder does not."""
    parts = (("scripts", NAME), ("core", "bootstrap.py"), ("skills", "off-policy", "SKILL.md"))
    return all(os.path.isfile(os.path.join(root, *part)) for part in parts)


home = os.environ.get("DISTILL_HOME")
around = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(HERE))))  # no further: others write there
roots = [home] if home else [around, *(os.environ[name] for name in PLUGINS if os.environ.get(name))]
root = next((os.path.realpath(each) for each in roots if is_bundle(each)), None)
if root is None:
    alone = f"this is a skill's folder alone, and {NAME} needs the bundle that it comes from"
    why = f"DISTILL_HOME={home} holds no distill bundle with {NAME}" if home else alone
    sys.stderr.write(f"{why}: install the whole repository as a plugin, or set DISTILL_HOME to a checkout\n")
    sys.exit(2)
runpy.run_path(os.path.join(root, "core", "bootstrap.py"))["start"](root, NAME, sys.argv[1:])
