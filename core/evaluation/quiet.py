"""lm-eval without its own voice: progress and messages are ours."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval without its log, its bars and its warnings, and with its prints on stderr.

    Only lm-eval's own are silenced; what a user's task prints is seen, though never on stdout, where our result goes.
    """
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface

    modules: list[Any] = [lm_eval.api.task, lm_eval.api.model, lm_eval.models.huggingface]
    logger = logging.getLogger("lm_eval")
    level, bar, bars = logger.level, modules[0].tqdm, datasets.are_progress_bars_disabled()

    def no_bar(*arguments: Any, **options: Any) -> Any:
        return bar(*arguments, **{**options, "disable": True})

    try:
        logger.setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        for module in modules:
            module.tqdm = no_bar
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lm_eval(\.|$)")
            yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        for module in modules:
            module.tqdm = bar
