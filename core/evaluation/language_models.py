"""The models of an evaluation, loaded, as lm-eval asks them.

transformers runs most; it writes answers and tells how probable a given one is. llama.cpp and APIs write answers only.
"""

import contextlib
import gc
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, GenerationConfig

from ..commands.evaluate import Evaluate
from ..errors import UsageError
from ..teachers import hf_model
from .completer_lm import CannotScore, CompleterLM
from .model_files import generation_folder
from .models import Named, computation, teacher_options
from .quiet import quiet

__all__ = ["CannotScore", "LanguageModel", "open_language_model"]


class LanguageModel:
    """A model that answers, until `close`.

    lm: what lm-eval asks.   network, tokenizer: of a model that transformers runs, else None; with a LoRA adapter the
    network's layers hold it.   batch_size: texts at once; None where lm-eval or the teacher chooses.
    """

    def __init__(
        self,
        lm: "HuggingFaceLM | CompleterLM",
        network: Any = None,
        tokenizer: Any = None,
        batch_size: int | None = None,
    ) -> None:
        self.lm: LM = lm
        self.network: Any = network
        self.tokenizer: Any = tokenizer
        self.batch_size = batch_size
        self._lm = lm

    @property
    def tokens(self) -> int:
        """Written so far."""
        return self._lm.tokens

    @property
    def usd(self) -> float | None:
        """Spent so far; None for a model in this process, and where nobody tells."""
        return self._lm.usd

    @property
    def notes(self) -> list[str]:
        """What a reader of the report must know of its answers."""
        return self._lm.notes

    def close(self) -> None:
        """Give back memory, threads and connections. The model cannot be asked any more."""
        self._lm.close()
        self.network = self.tokenizer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_language_model(
    named: Named, options: Evaluate, note: Callable[[str], None] = lambda text: None
) -> LanguageModel:
    """The model, loaded and ready. Raises UsageError when it cannot be."""
    if named.backend != "hf":
        return LanguageModel(CompleterLM(teacher_options(options), note))
    device, dtype = computation(options)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    tokenizer, network = _load(named, device, dtype)
    lm = HuggingFaceLM(network, tokenizer, options.batch_size, options.threads)
    return LanguageModel(lm, network, tokenizer, options.batch_size)


def _load(named: Named, device: str, dtype: str) -> tuple[Any, Any]:
    """(tokenizer, network)."""
    assert named.folder is not None
    assert named.tokenizer_folder is not None
    tokenizer = hf_model.load_tokenizer(named.tokenizer_folder, chat=False)
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            named.folder, dtype=getattr(torch, dtype), output_loading_info=True, trust_remote_code=False
        )
        network, loaded = opened
        _check_whole(named, [key for kind in ("missing_keys", "mismatched_keys") for key in loaded.get(kind, ())])
        if errors := loaded.get("error_msgs"):
            raise ValueError("; ".join(map(str, errors)))
        if named.adapter:
            network = _adapted(network, named, len(tokenizer))
        return tokenizer, network.to(device).eval()
    except UsageError:
        raise
    except Exception as error:  # transformers, peft and torch raise whatever they meet
        reason = (str(error).strip() or "no explanation").splitlines()[0][:300]
        raise UsageError(f"{named.name} ({named.path}) cannot be loaded: {type(error).__name__}: {reason}") from None


def _check_whole(named: Named, lacking: Sequence[Any], whose: str = "weights") -> None:
    """Raises UsageError for tensors that no file held: transformers and PEFT go on with random numbers in their place.

    lacking: names, or tuples that begin with one.
    """
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in lacking)
    if names:
        first = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
        raise UsageError(
            f"{named.name} ({named.path}): the {whose} lack {first}: they would be random. Save or fetch it again."
        )


def _adapted(network: Any, named: Named, tokens: int) -> Any:
    """The network with the adapter in its layers, as PEFT computes it: not merged, which would round.

    tokens: of the tokenizer.
    """
    import peft  # only here: it takes a second to import

    if tokens > network.get_input_embeddings().weight.shape[0]:  # trained with further tokens
        network.resize_token_embeddings(tokens)
    assert named.folder is not None
    assert named.adapter is not None
    if generation_folder(named.folder, named.adapter) == named.adapter:
        network.generation_config = GenerationConfig.from_pretrained(named.adapter)
    with warnings.catch_warnings(record=True) as said:  # PEFT calls transformers by older names, too
        warnings.simplefilter("always")
        model: Any = peft.PeftModel.from_pretrained(network, str(named.adapter))
    # What PEFT found missing, it tells in a warning only: "Found missing adapter keys while loading ...: ['...']."
    missing = [str(each.message) for each in said if "missing adapter keys" in str(each.message)]
    _check_whole(named, [key for text in missing for key in re.findall(r"'([^']+)'", text)], "adapter's weights")
    # PEFT's wrapper goes round the hooks of the network inside. Prompts that were learnt are in the wrapper, though.
    return model if model.active_peft_config.is_prompt_learning else model.get_base_model()


_HFLM: Any = HFLM  # its type is lost in lm-eval's decorator


class HuggingFaceLM(_HFLM):
    """lm-eval's own way to ask a transformers model, without its bars and prints.

    A batch size of None is lm-eval's "auto" on an accelerator; on a CPU, where nothing runs out that could be tried, it
    is 1 until `batch_size_per_gpu` is set.
    """

    usd = None

    def __init__(self, network: Any, tokenizer: Any, batch_size: int | None, threads: int | None) -> None:
        """threads: of the CPU; None for what torch takes."""
        self._threads_before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)
        self.tokens = 0
        self.notes: list[str] = []
        with quiet():
            super().__init__(
                pretrained=network,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch_size or (1 if network.device.type == "cpu" else "auto"),
            )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """lm-eval's, as are the next two."""
        with _unprinted():
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        with _unprinted():
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        with _unprinted():
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        out = super()._model_generate(context, max_length, stop, **generation_kwargs)
        self.tokens += int((out[:, context.shape[1] :] != self.tokenizer.pad_token_id).sum())
        return out

    def close(self) -> None:
        torch.set_num_threads(self._threads_before)
        self._model = self.pretrained = None


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """What lm-eval prints of the batch sizes that it tries."""
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield
