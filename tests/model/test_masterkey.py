"""The master key file: what it holds comes back, anything else is refused, and nothing ever shows the key."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zstor_local.model.ids import StoreId
from zstor_local.model.masterkey import MAX_FILE_BYTES, BadKeyFile, MasterKey

KEY = MasterKey(StoreId(b"store id 16bytes"), bytes(range(32)))
TEXT = KEY.to_text()
STORE_LINE, KEY_LINE = TEXT.split("\n")[1:3]


def test_a_key_is_read_back() -> None:
    assert MasterKey.from_text(TEXT) == KEY
    assert len(TEXT) < MAX_FILE_BYTES


def test_the_text_is_what_it_always_was() -> None:
    assert TEXT == "zstor master key 1\nstore 73746f72652069642031366279746573\nkey   AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"


def test_lines_that_people_add_do_no_harm() -> None:
    assert MasterKey.from_text(f"zstor master key 1\n# my laptop\n\n{KEY_LINE}\n{STORE_LINE}\nnote  to self") == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zstor master key 2\n" + TEXT.split("\n", 1)[1],
        " " + TEXT,
        f"zstor master key 1\n{STORE_LINE}\n",
        f"zstor master key 1\n{KEY_LINE}\n",
        TEXT.replace("store 73", "store 7"),
        TEXT.replace("store 73", "store xx"),
        TEXT.replace("store 73", "store 7373"),
        TEXT.replace("AAEC", "AAE"),
        TEXT.replace("AAEC", "AA*C"),
        TEXT.replace("AAEC", "AAECAAEC"),
        f"zstor master key 1\n{STORE_LINE}\nkey   {base64.b64encode(bytes(31)).decode()}\n",
        f"zstor master key 1\n{STORE_LINE}\nkey   ü\n",
    ],
)
def test_anything_else_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(BadKeyFile) as caught:
        MasterKey.from_text(text)
    assert "AwQFBgcICQ" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_key_file_or_refused(text: str) -> None:
    for each in (text, f"zstor master key 1\n{text}", f"zstor master key 1\n{STORE_LINE}\nkey {text}"):
        with contextlib.suppress(BadKeyFile):
            MasterKey.from_text(each)


def test_repr_does_not_show_the_key() -> None:
    assert "x02" not in repr(KEY)
    assert "AAEC" not in repr(KEY)
