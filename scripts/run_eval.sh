#!/usr/bin/env bash
# Evaluate a trained model against its baseline: the same as scripts/evaluate.py, with its options.
#
#     export KD_MODEL_PATH=runs/gold/best BASE_MODEL_ID=student
#     bash scripts/run_eval.sh --suite opd --limit 200
root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd) || exit
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$root/scripts/evaluate.py" "$@"
