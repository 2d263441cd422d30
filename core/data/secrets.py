"""Secrets kept out of what others see: blanked in texts and streams, and not handed to processes that need none."""

import io
import os
import re
import threading
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TextIO

from ..commands import Command
from ..errors import UsageError
from .environment import dotenv

CREDENTIAL = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE)_?\d*\Z", re.IGNORECASE)
"""How the name of a variable ends that holds a secret: OPENAI_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, MY_KEY_2."""
SHORTEST = 8
"""Characters of a secret. Shorter values ("EMPTY", "none", what vLLM is given for want of a key) are words of texts."""
MARK = "***"

_PREFIXES = r"hf_|gsk_|fw_|tgp_v1_|r8_|gh[opsru]_|github_pat_|glpat-|xox[abpr]-|nvapi-"
_KEYS = (
    r"sk-(?=[\w-]{0,200}\d)[\w-]{16,}",  # OpenAI, OpenRouter, Anthropic, DeepSeek
    rf"(?:{_PREFIXES})[\w-]{{16,}}",
    r"(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"AIza[\w-]{30,}",
    r"eyJ[\w-]{10,300}\.[\w-]{10,4000}\.[\w-]+",  # a JSON Web Token
)
_BEFORE = ("[?&]key=", "[?&]sig=", "[?&]token=", "access_token=", "signature=", "password=", "api[_-]key=", "apikey=")
PATTERNS = re.compile(
    rf"(?<![A-Za-z0-9])(?:{'|'.join(_KEYS)})"
    r"|(?i:(?<=\bbearer )(?=[\w.~+/-]{0,200}\d)|(?<=\bauthorization: basic ))[\w.~+/=-]{8,}"
    rf"|(?i:{'|'.join(f'(?<={before})' for before in _BEFORE)})[^\s&\"']{{8,}}"
    r"|(?<=://)[^\s/@:\"']*:[^\s/@\"']+(?=@)"  # user:password
)
"""What looks like a secret wherever it came from. Its searches are bounded, because anybody may have written a text."""
SIGNS = (
    *("sk-", "hf_", "gsk_", "fw_", "tgp_v1_", "r8_", "gho_", "ghp_", "ghs_", "ghr_", "ghu_", "github_pat_", "glpat-"),
    *("xox", "nvapi-", "akia", "asia", "aiza", "eyj", "bearer ", "basic ", "key=", "sig=", "token=", "signature="),
    *("password=", "://"),
)
"""One of these is in whatever PATTERNS finds, in small letters: most texts need not be searched."""
BEGINNING = re.compile(rf"(?i:sk-|{_PREFIXES}|akia|asia|aiza|eyj|bearer |basic |{'|'.join(_BEFORE)}|://)\S*\Z")
"""The end of a text that may go on to be one."""

_LONGEST_HELD = 1 << 16
"""Characters of one line that a stream keeps back at most."""
_LONGEST_SECRET = 1 << 12

PROVIDER_KEYS = (
    *("OPENROUTER_API_KEY", "OPENAI_API_KEY", "NVIDIA_API_KEY", "TOGETHER_API_KEY", "FIREWORKS_API_KEY"),
    *("VLLM_API_KEY", "SGLANG_API_KEY", "LLAMA_API_KEY", "OLLAMA_API_KEY"),
)
PASSED_ON = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "NO_COLOR"),
    *("TMPDIR", "TEMP", "TMP", "XDG_*"),
    *("PYTHON*", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_*"),
    *("HF_*", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGINGFACE_HUB_CACHE"),
    *("TRANSFORMERS_*", "TOKENIZERS_PARALLELISM", "ACCELERATE_*", "WANDB_*", "TRACKIO_*"),
    *("CUDA_*", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NCCL_*", "HIP_*", "ROCR_*", "HSA_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "GGML_*", "OMP_*", "MKL_*", "OPENBLAS_*"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"),
    *("PLAYWRIGHT_*", "CHROME_*"),
    *("DISTILL_JOBS_PER_DEVICE", "DISTILL_DATA", "DISTILL_PYTHON", "DISTILL_LAUNCHER"),
)
"""Names, and patterns of names, of the variables that every job gets: no keys but those for the Hub, for trackers and
in the addresses of proxies."""


def is_credential(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return CREDENTIAL.search(name) is not None


def known_secrets() -> list[str]:
    """The values of all credentials in the environment and in `.env`, the longest first."""
    try:
        written = dotenv()
    except (UsageError, OSError):  # an .env that cannot be read gives no key to anyone; a folder that was removed
        written = {}
    found = {
        value.strip()
        for source in (os.environ, written)
        for name, value in source.items()
        if value and is_credential(name)
    }
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)


def redact(text: str) -> str:
    """The text with *** for every credential of the environment and of `.env`, and for whatever looks like a key.

    A safeguard: code that knows a secret keeps it out of texts itself. A secret that is neither in a variable with such
    a name nor of a known form is not recognised.
    """
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """`redact` for many texts: the credentials are looked up once."""
    secrets = known_secrets()

    def redacted(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, MARK)
        lower = text.lower()
        return PATTERNS.sub(MARK, text) if any(sign in lower for sign in SIGNS) else text

    return redacted


class RedactingStream(io.TextIOBase):
    """A text stream that blanks secrets on their way to another one, also those that come in several pieces.

    A line goes on when it ends (at \\n or \\r). `flush` lets an unfinished one go on, but for an end that may be the
    beginning of a secret. What is written to the file descriptor or to `stream.buffer` goes past this. Closing it
    leaves the other stream open.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held = ""
        self._lock = threading.RLock()  # a signal handler may write while its thread writes

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.errors

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        with self._lock:
            self._held += text
            end = max(self._held.rfind("\n"), self._held.rfind("\r")) + 1
            self._pass_on(end if end or len(self._held) <= _LONGEST_HELD else self._undecided())
        return len(text)

    def flush(self) -> None:
        with self._lock:
            if self._held:
                self._pass_on(self._undecided())
            self._stream.flush()

    def close(self) -> None:
        with self._lock:
            if not self.closed:
                self._pass_on(len(self._held))
        super().close()

    def _pass_on(self, end: int) -> None:
        if end:
            text, self._held = self._held[:end], self._held[end:]
            self._stream.write(redact(text))

    def _undecided(self) -> int:
        """Where the end begins that may be part of a secret."""
        held = self._held
        if len(held) > 2 * _LONGEST_HELD:
            return len(held)
        begins = BEGINNING.search(held, max(0, len(held) - _LONGEST_SECRET))
        start = begins.start() if begins else len(held)
        for secret in known_secrets():
            for length in range(min(len(secret) - 1, len(held)), 0, -1):
                if held.endswith(secret[:length]):
                    start = min(start, len(held) - length)
                    break
        return start


def child_environment(command: type[Command] | Command, environ: Mapping[str, str]) -> dict[str, str]:
    """What a command's process gets of an environment: what programs need to run, the keys of the known providers, the
    variables that the command's options are read from, and, of a command with values, those that its options name as
    holding a key."""
    model = command if isinstance(command, type) else type(command)
    names = {*PROVIDER_KEYS, *(key for field in model.model_fields for key in model.option(field).env_keys)}
    if isinstance(command, Command):
        keys = (getattr(command, field) for field in model.model_fields if model.option(field).names == "key")
        names |= {key for key in keys if key}
    return {
        name: value
        for name, value in environ.items()
        if name in names or any(fnmatchcase(name, pattern) for pattern in PASSED_ON)
    }
