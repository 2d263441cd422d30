"""A model with another tokenizer: every new token's embedding from the old tokens that spell its bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..distillation.chat import CHATML, ChatSide
from ..distillation.token_bytes import Ints, TokenBytes
from ..distillation.vocabulary import build
from ..errors import UsageError

CHATML_MARKS = ["<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True, eq=False)
class Composition:
    """Of which old tokens each new one is made.

    old_ids, new_ids: (n,) old token old_ids[i] is a part of new token new_ids[i].
    size: V, how many new tokens there are. Of them, copied have one part, composed have several, unknown have none.
    """

    old_ids: Ints
    new_ids: Ints
    size: int
    copied: int
    composed: int
    unknown: int

    def rows(self, old: Tensor, known: Tensor) -> Tensor:
        """Old rows (W, ...) -> new rows (V, ...): the mean of their parts, summed in float32; a single part exactly.

        known: ids of the old rows whose mean stands for a token without parts.
        """
        source = old.detach().float()
        parts, wholes = (torch.from_numpy(ids).to(old.device) for ids in (self.old_ids, self.new_ids))
        counts = torch.zeros(self.size, device=old.device).index_add_(
            0, wholes, torch.ones(len(parts), device=old.device)
        )
        sums = torch.zeros((self.size, *source.shape[1:]), device=old.device).index_add_(0, wholes, source[parts])
        sums[counts == 0] = source[known.to(old.device)].mean(0)
        return (sums / counts.clamp(min=1).reshape(-1, *[1] * (old.dim() - 1))).to(old.dtype)


def prepare(tokenizer: Any, old_tokenizer: Any) -> tuple[ChatSide, list[str]]:
    """Make a tokenizer fit for a chat model, in place, and say what was done.

    Without a chat template it gets the one that the model knows, with that one's special tokens, or else ChatML with
    its two. Without a token for padding it gets one that does not end an answer, where there is one: else a mask made
    from padding would hide the end of an answer.
    Raises UsageError as `ChatSide`.
    """
    notes: list[str] = []
    if not tokenizer.chat_template:
        template = old_tokenizer.chat_template or CHATML
        source = template if isinstance(template, str) else "".join(template.values())
        specials = [token.content for token in old_tokenizer.added_tokens_decoder.values() if token.special]
        marks = [mark for mark in specials if mark in source] if old_tokenizer.chat_template else CHATML_MARKS
        fresh = [mark for mark in marks if mark not in tokenizer.get_vocab()]
        if fresh:
            tokenizer.add_special_tokens({"extra_special_tokens": fresh}, replace_extra_special_tokens=False)
        tokenizer.chat_template = template
        whose = "that of the model" if old_tokenizer.chat_template else "ChatML"
        added = f"; {', '.join(fresh)} became special tokens" if fresh else ""
        notes.append(f"{tokenizer.name_or_path} has no chat template: {whose} is saved with it{added}")
    side = ChatSide(tokenizer)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(side.end_of_turn)
    if tokenizer.pad_token_id is None:
        others = [place for place in (*side.ends[1:], tokenizer.unk_token_id) if place is not None]
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens((others or [side.end_of_turn])[0])
    return side, notes


def compose(new: ChatSide, old: ChatSide, old_width: int, check: Callable[[], None] = lambda: None) -> Composition:
    """Each new token's old parts: the one with the same bytes, or of the same role (end of turn, end of text), else
    those that the old tokenizer spells its bytes with in the middle of a text.

    Padding rows, and bytes that the old tokenizer cannot spell, have none. old_width: rows of the old embeddings.
    check: called now and then; it may raise.
    """
    table, theirs = new.token_bytes, old.token_bytes
    same = build(table, theirs, table.size, old_width, (new.end_of_turn, old.end_of_turn))
    partner = dict(zip(same.student_ids.tolist(), same.teacher_ids.tolist(), strict=True))
    if len(new.ends) > 1:
        partner.setdefault(new.ends[1], old.ends[-1])
    parts: list[list[int]] = []
    for place in range(table.size):
        if place % 1000 == 0:
            check()
        parts.append([partner[place]] if place in partner else _spelt(table, place, theirs, old_width))
    sizes = np.fromiter(map(len, parts), np.int64, table.size)
    return Composition(
        old_ids=np.array([place for each in parts for place in each], np.int64),
        new_ids=np.repeat(np.arange(table.size), sizes),
        size=table.size,
        copied=int((sizes == 1).sum()),
        composed=int((sizes > 1).sum()),
        unknown=int((sizes == 0).sum()),
    )


def move(model: Any, made: Composition, new: ChatSide, old: ChatSide, tokenizer: Any) -> None:
    """Give a model the new vocabulary, in place: embeddings, output layer (tied or not, with or without bias),
    configuration and generation settings."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    known = torch.from_numpy(np.flatnonzero(old.token_bytes.known[: embedding.weight.shape[0]]))
    tied = head.weight is embedding.weight
    embedding.weight = nn.Parameter(made.rows(embedding.weight, known))
    embedding.num_embeddings, embedding.padding_idx = made.size, None
    head.weight = embedding.weight if tied else nn.Parameter(made.rows(head.weight, known))
    head.out_features = made.size
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(made.rows(head.bias, known))
    text = model.config.get_text_config()
    text.vocab_size = made.size
    for config in (model.config, text, model.generation_config):
        config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
        config.eos_token_id = list(new.ends)
        if getattr(config, "unk_token_id", None) is not None:  # converted GGUF files have it
            config.unk_token_id = tokenizer.unk_token_id


def _spelt(new: TokenBytes, place: int, old: TokenBytes, old_width: int) -> list[int]:
    piece = new.pieces[place]
    if not new.known[place] or (new.added[place] and piece == b"[PAD%d]" % place):  # llama.cpp's name of a padding row
        return []
    try:
        parts = old.encode(piece)
    except UsageError:
        return []
    return parts if max(parts) < old_width else []
