"""distill: turn a strong language model (the teacher) into a small one (the student)."""

import sys

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # before anything that an older Python cannot even import
    sys.stderr.write(
        "distill needs Python 3.11 or newer; this is %s, version %d.%d\n" % (sys.executable, *sys.version_info[:2])
    )
    raise SystemExit(2)
