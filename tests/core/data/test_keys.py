"""Keys of work and the table that remembers them."""

from core.data.keys import KeyCounts, work_key


def test_a_key_is_32_hex_digits_and_does_not_depend_on_the_order_of_keys() -> None:
    one, other = work_key({"a": 1, "b": [1, 2]}), work_key({"b": [1, 2], "a": 1})
    assert one == other
    assert len(one) == 32
    assert int(one, 16) >= 0


def test_the_order_of_a_list_is_content() -> None:
    assert work_key([1, 2]) != work_key([2, 1])


def test_the_number_1_and_the_text_1_are_different_work() -> None:
    assert len({work_key(["1"]), work_key([1]), work_key([None]), work_key([True])}) == 4


def test_counts_say_how_often_a_key_was_seen_before() -> None:
    counts = KeyCounts()
    key = work_key("a")
    assert [counts.add(key), counts.add(key), counts.add(key)] == [0, 1, 2]
    assert key in counts
    assert work_key("b") not in counts
    assert len(counts) == 1


def test_a_key_of_all_zeros_is_a_key_like_any_other() -> None:
    counts = KeyCounts()
    zero = "0" * 32
    assert zero not in counts
    assert counts.add(zero) == 0
    assert zero in counts
    assert counts.add(zero) == 1


def test_a_hundred_thousand_keys_take_less_than_54_bytes_each() -> None:
    counts = KeyCounts()
    keys = [work_key(number) for number in range(100_000)]
    for key in keys:
        assert counts.add(key) == 0
    assert len(counts) == 100_000
    assert all(key in counts for key in keys)
    # 100,000 keys at most 2/3 full need 262,144 slots (131,072 x 2/3 = 87,381 is too few): 12 bytes x 262,144 = 3.1 MB
    size = counts._slots.itemsize * len(counts._slots) + counts._counts.itemsize * len(counts._counts)
    assert size / 100_000 < 36
