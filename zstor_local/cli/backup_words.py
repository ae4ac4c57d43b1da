"""The master key as words that can be written on paper and read back.

Format 1, before encoding: one byte 1, the store id (16 bytes), the master key (32 bytes), and the first 3 bytes of SHA-256 over
"zstor backup words" and the 49 bytes before. The 52 bytes make 26 words, two bytes each, as proquints (Wilkerson 2009,
arXiv:0901.4016): consonant, vowel, consonant, vowel, consonant, of 4, 2, 4, 2 and 4 bits, most significant first.
Reading ignores case, line breaks, punctuation and the numbers that are printed before the words.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from zstor_local.model.ids import ID_BYTES, StoreId
from zstor_local.model.masterkey import MasterKey

FORMAT: Final = 1
WORDS: Final = 26

_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aiou"
_LETTERS: Final = (_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS)
_CHECK_BYTES: Final = 3
_WORD: Final = re.compile(f"[{_CONSONANTS}][{_VOWELS}][{_CONSONANTS}][{_VOWELS}][{_CONSONANTS}]")


class BadWords(Exception):
    """The words are not a backup; the message says where to look."""


def to_words(key: MasterKey) -> list[str]:
    """The 26 words of a key."""
    body = bytes([FORMAT]) + key.store_id + key.key
    whole = body + _check(body)
    return [_word(int.from_bytes(whole[at : at + 2], "big")) for at in range(0, len(whole), 2)]


def from_words(text: str) -> MasterKey:
    """The key that the words of a text hold; BadWords if one is misspelt, missing, too many or in the wrong place."""
    words = re.findall(r"[a-z]+", text.lower())
    for number, word in enumerate(words, start=1):
        if not _WORD.fullmatch(word):
            raise BadWords(f"word {number} is misspelt: no backup has the word {word!r}")
    if len(words) != WORDS:
        raise BadWords(f"a backup has {WORDS} words, these are {len(words)}")
    whole = b"".join(_number(word).to_bytes(2, "big") for word in words)
    body, check = whole[:-_CHECK_BYTES], whole[-_CHECK_BYTES:]
    if check != _check(body):
        raise BadWords("the words do not fit together: one is another than was written down, or two have changed places")
    if body[0] != FORMAT:
        raise BadWords(f"these words have format {body[0]}; this version reads format {FORMAT}")
    return MasterKey(StoreId(body[1 : 1 + ID_BYTES]), body[1 + ID_BYTES :])


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"zstor backup words" + body).digest()[:_CHECK_BYTES]


def _word(number: int) -> str:
    word = ""
    for letters in reversed(_LETTERS):
        number, place = divmod(number, len(letters))
        word = letters[place] + word
    return word


def _number(word: str) -> int:
    number = 0
    for letters, letter in zip(_LETTERS, word, strict=True):
        number = number * len(letters) + letters.index(letter)
    return number
