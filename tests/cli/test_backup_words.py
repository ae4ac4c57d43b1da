"""The master key as words: they read back, and a slip of the pen is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zstor_local.cli.backup_words import WORDS, BadWords, from_words, to_words
from zstor_local.model.ids import ID_BYTES, StoreId
from zstor_local.model.masterkey import KEY_BYTES, MasterKey

KEYS = st.builds(
    MasterKey,
    st.binary(min_size=ID_BYTES, max_size=ID_BYTES).map(StoreId),
    st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES),
)
EXAMPLE = MasterKey(StoreId(bytes(range(16))), bytes(range(100, 132)))
EXAMPLE_WORDS = (
    "bahab bahaf basah bihak bisam bohap bosas buhav butoh kijok kitom kojop kotos "
    "kujov kutub lajuf latuh lijuk litum lojup lotus lujuv luvab makaf mazob bisok"
)


@given(KEYS)
def test_words_read_back(key: MasterKey) -> None:
    words = to_words(key)
    assert len(words) == WORDS
    assert from_words(" ".join(words)) == key


def test_case_numbers_and_line_breaks_do_not_matter() -> None:
    text = "\n".join(f"{number:2}. {word.upper()}" for number, word in enumerate(to_words(EXAMPLE), start=1))
    assert from_words(text) == EXAMPLE


@given(KEYS, st.integers(0, WORDS - 1), KEYS)
def test_another_word_in_one_place_is_found(key: MasterKey, place: int, other: MasterKey) -> None:
    words = to_words(key)
    wrong = [*words[:place], to_words(other)[place], *words[place + 1 :]]
    if wrong != words:
        with pytest.raises(BadWords):
            from_words(" ".join(wrong))


def test_two_words_in_each_others_place_are_found() -> None:
    first, second, *rest = to_words(EXAMPLE)
    with pytest.raises(BadWords, match="do not fit together"):
        from_words(" ".join([second, first, *rest]))


def test_a_misspelt_word_is_named_by_its_number() -> None:
    words = to_words(EXAMPLE)
    words[6] = "bqbad"
    with pytest.raises(BadWords, match="word 7 is misspelt"):
        from_words(" ".join(words))


def test_a_missing_word_is_counted() -> None:
    with pytest.raises(BadWords, match="26 words, these are 25"):
        from_words(" ".join(to_words(EXAMPLE)[1:]))


def test_the_format_stays() -> None:
    assert " ".join(to_words(EXAMPLE)) == EXAMPLE_WORDS
