"""How many texts go through a model at once."""

from core.evaluation.batches import COPIES, MOST, SHARE, TOKENS_AT_ONCE, batch_size, memory_bytes

GB = 2**30


def test_short_texts_go_by_many_and_long_ones_by_few():
    sizes = [batch_size("score", longest, 50_000, 64 * GB) for longest in (10, 200, 1_000, 10_000)]
    assert sizes == [MOST["score"], TOKENS_AT_ONCE // 200, TOKENS_AT_ONCE // 1_000, 1]


def test_the_logits_of_a_batch_fit_into_their_share_of_memory():
    # 2 GiB / 8 = 268,435,456 bytes; a text of 512 tokens: 512 * 50,000 * 4 * 3 = 307,200,000
    assert batch_size("score", 512, 50_000, 2 * GB) == 1
    # ... and of 64 tokens: 38,400,000, six times
    assert batch_size("score", 64, 50_000, 2 * GB) == int(2 * GB * SHARE) // (64 * 50_000 * 4 * COPIES) == 6


def test_an_answer_has_the_logits_of_one_token_only():
    assert batch_size("generate", 2_000, 50_000, 2 * GB) == MOST["generate"]


def test_the_same_machine_always_chooses_the_same():
    assert memory_bytes() > 2**20
    assert len({batch_size("score", 50, 49_152) for _ in range(5)}) == 1
    assert batch_size("score", 0, 1) >= 1
