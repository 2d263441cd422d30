"""The wheel: one package under a name of its own, whose modules import one another only."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support.running import ROOT

HEAVY = (
    *("hf", "hf_model", "hf_states", "gguf", "scorer", "hf_scorer", "gguf_scorer", "tokenizer_loading"),
    *("api_scorer", "scoring_wire", "harness", "cached_lm", "language_models", "completer_lm", "closeness"),
)


def test_the_wheel_holds_one_package_whose_modules_import_one_another_only(tmp_path: Path):
    building = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    built = subprocess.run(building, capture_output=True, text=True, encoding="utf-8", env=dict(os.environ))
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("distill_kit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    installing = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*installing, tmp_path / "site", wheel], check=True)
    tops = {name.split("/")[0] for name in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"distill_kit"}
    assert any(name.endswith("licenses/LICENSE") for name in files)

    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files
        if name.endswith(".py") and Path(name).stem not in HEAVY and not re.search("/(distillation|training)/", name)
    ]
    assert len(modules) > 20
    # -P and another folder: the checkout's core must not help
    code = f"import importlib, sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n" + "".join(
        f"importlib.import_module({module!r})\n" for module in modules
    )
    code += "print(sorted(name for name in sys.modules if name.split('.')[0] in ('core', 'torch', 'transformers')))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
