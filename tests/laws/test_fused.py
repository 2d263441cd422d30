"""Laws of the fused losses, in float64: the same as the reference, whatever the models, the text and the chunks."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.distillation import losses
from core.distillation.alignment import align
from core.distillation.fused import fused_cross_entropy, fused_jsd, fused_top_k_tail
from core.distillation.fused_hybrid import fused_hybrid
from core.distillation.fused_sparse import fused_sparse
from core.distillation.gold import gold_hybrid, gold_sparse
from core.distillation.output_head import OutputHead
from core.distillation.vocabulary import VocabularyMap
from tests.core.distillation.test_fused import same

# A first call into torch may take any time, so there are no deadlines.
law = settings(max_examples=40, deadline=None)

betas = st.sampled_from([0.0, 1.0]) | st.floats(0.02, 0.98)
temperatures = st.floats(0.3, 3.0)
chunk_sizes = st.none() | st.integers(1, 5)
seeds = st.integers(0, 2**31)
spreads = st.sampled_from([0.1, 1.0, 4.0])
"""How peaked the models are: standard deviation of their hidden states."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(draw: torch.Generator, rows: int, width: int, spread: float) -> tuple[torch.Tensor, OutputHead]:
    hidden = spread * torch.randn(rows, 4, generator=draw, dtype=torch.float64)
    return hidden.requires_grad_(), OutputHead(
        torch.randn(width, 4, generator=draw, dtype=torch.float64).requires_grad_()
    )


@law
@given(seeds, st.integers(0, 6), st.integers(2, 20), betas, temperatures, chunk_sizes, spreads)
def test_losses_of_one_vocabulary_are_the_reference(seed, rows, width, beta, temperature, chunk, spread):
    draw = torch.Generator().manual_seed(seed)
    (hidden, head), (teacher_hidden, teacher_head) = (model(draw, rows, width, spread) for _ in range(2))
    inputs, teacher = [hidden, head.weight], teacher_head.logits(teacher_hidden).detach()
    ids = torch.randint(width, (rows,), generator=draw)
    logits = head.logits(hidden)
    same(fused_cross_entropy(hidden, head, ids, chunk), losses.cross_entropy(logits, ids, None), inputs)
    fused = fused_jsd(hidden, head, teacher_hidden, teacher_head, beta, temperature, chunk)
    same(fused, losses.generalized_jsd(head.logits(hidden), teacher, None, beta, temperature), inputs)
    assert fused.total >= -1e-12
    best = teacher.log_softmax(-1).topk(min(3, width - 1))
    sparse = fused_top_k_tail(hidden, head, best.indices, best.values, beta, chunk)
    same(sparse, losses.top_k_tail(head.logits(hidden), best.indices, best.values, None, beta), inputs)
    # Putting outcomes together can only hide differences. The teacher's tail is 1 - the others, which loses digits.
    assert sparse.total <= fused_jsd(hidden, head, teacher_hidden, teacher_head, beta).total + 1e-6


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Where the tokens of two tokenizers end."""
    size = draw(st.integers(1, 12))
    inner = st.sets(st.integers(1, size - 1)) if size > 1 else st.just(set())
    return [*sorted(draw(inner)), size], [*sorted(draw(inner)), size]


@law
@given(
    seeds,
    texts(),
    st.tuples(st.integers(2, 14), st.integers(2, 14)),
    st.floats(0.0, 0.99) | st.just(1.0),
    betas,
    temperatures,
    st.sampled_from(["last_token", "span"]),
    st.none() | st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 2.0)),
    st.integers(1, 20),
    chunk_sizes,
    spreads,
)
def test_the_hybrid_is_the_reference(
    seed, ends, widths, share, beta, temperature, merged, weights, top_k, chunk, spread
):
    draw, choose = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    matched = int(share * min(widths))
    pairs = [choose.choice(width, matched, replace=False) for width in widths]
    pairs[0].sort()
    rest = [np.setdiff1d(np.arange(width), ids) for width, ids in zip(widths, pairs, strict=True)]
    vocabulary = VocabularyMap(pairs[0], pairs[1], rest[0], rest[1], widths[0], widths[1])
    sides = [model(draw, len(end), width, spread) for end, width in zip(ends, widths, strict=True)]
    (hidden, head), (teacher_hidden, teacher_head) = sides
    ids = [torch.randint(width, (len(end),), generator=draw) for end, width in zip(ends, widths, strict=True)]
    groups, inputs = align(*ends), [hidden, head.weight]
    shared = (groups, vocabulary, beta, weights, temperature, merged)
    ours = (hidden, head, ids[0], teacher_hidden, teacher_head, ids[1], *shared)
    teacher = teacher_head.logits(teacher_hidden).detach()
    reference = gold_hybrid(head.logits(hidden), ids[0], teacher, ids[1], *shared)
    same(fused_hybrid(*ours, None, chunk), reference, inputs, 1e-8)
    same(fused_hybrid(*ours, 20, chunk), reference, inputs, 1e-8)
    rough, whole = fused_hybrid(*ours, top_k, chunk), fused_hybrid(*ours, top_k)
    same(rough, whole, inputs)
    assert rough.parts["unmatched"] <= reference.parts["unmatched"] + 1e-9
    assert whole.total >= -1e-12
    best = teacher.log_softmax(-1).topk(min(top_k, widths[1]))
    picked = teacher.log_softmax(-1).gather(1, ids[1].unsqueeze(1)).squeeze(1)
    told = (picked, best.indices, best.values, groups, vocabulary, beta)
    sparse = fused_sparse(hidden, head, ids[0], *told, chunk)
    same(sparse, gold_sparse(head.logits(hidden), ids[0], *told), inputs, 1e-8)
