"""Names at the door: which namespaces and keys there can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zstor_local import limits
from zstor_local.errors import InvalidParams, TooLarge
from zstor_local.model.ids import ObjectName, ShareId, Version, check_key, check_namespace


@pytest.mark.parametrize("name", ["a", "0", "default", "a-b", "a_b", "a" * 63, "0stor", "a_0stor"])
def test_a_namespace_name_is_itself(name: str) -> None:
    assert check_namespace(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "a.b", "-a", "a-", "_a", "a_", "a" * 64, "a b", "a/b", "ü", "a\n", "\na", "a\0", "a_0stor_b", "..", "*"],
)
def test_any_other_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        check_namespace(name)
    assert "1 to 63" in (caught.value.hint or "")


@pytest.mark.parametrize("key", ["a", " ", "/", "../..", "a\nb", "ü", "😀", "a" * limits.KEY_BYTES, "ü" * (limits.KEY_BYTES // 2)])
def test_a_key_is_itself(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "\0", "a\0b", "\ud800", "a\udfff"])
def test_an_empty_key_and_what_utf8_cannot_say_is_refused(key: str) -> None:
    with pytest.raises(InvalidParams):
        check_key(key)


@pytest.mark.parametrize("key", ["a" * (limits.KEY_BYTES + 1), "ü" * (limits.KEY_BYTES // 2 + 1)])
def test_a_key_is_measured_in_bytes(key: str) -> None:
    with pytest.raises(TooLarge) as caught:
        check_key(key)
    assert caught.value.data["limit"] == limits.KEY_BYTES


@given(st.text(max_size=40))
def test_any_text_is_a_key_or_refused(key: str) -> None:
    try:
        assert 0 < len(check_key(key).encode()) <= limits.KEY_BYTES
        assert "\0" not in key
    except InvalidParams:
        assert not key or "\0" in key or any("\ud800" <= character <= "\udfff" for character in key)


def test_names_and_shares_are_values() -> None:
    assert ObjectName("default", "a") == ObjectName("default", "a")
    assert len({ShareId(Version(bytes(16)), 1), ShareId(Version(bytes(16)), 1), ShareId(Version(bytes(16)), 2)}) == 2
