"""The content of files against the plainest model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.content import PAGE, Content, Reserve, Truncate, Write

mutations = st.one_of(
    st.builds(Write, st.integers(0, 20_000), st.binary(min_size=1, max_size=50).map(lambda piece: piece * 200)),
    st.builds(Truncate, st.integers(0, 30_000)),
    st.builds(Reserve, st.integers(0, 20_000), st.integers(1, 9_000)),
)


@given(st.lists(mutations, max_size=12), st.integers(0, 35_000), st.integers(0, 20_000))
def test_content_is_as_a_plain_array_of_bytes(changes: list[Write | Truncate | Reserve], offset: int, length: int) -> None:
    content, plain = Content(), bytearray()
    for change in changes:
        before = content.copy()
        old = bytes(plain)
        change.apply(content)
        if isinstance(change, Truncate):
            plain = (plain + bytes(change.length))[: change.length]
        else:
            size = len(change.data) if isinstance(change, Write) else change.length
            plain += bytes(max(0, change.offset + size - len(plain)))
            if isinstance(change, Write):
                plain[change.offset : change.offset + size] = change.data
            assert content.used - before.used == before.lacking(change.offset, size)
        assert content.read(0, 100_000) == plain
        assert before.read(0, 100_000) == old
    assert content.read(offset, length) == plain[offset : offset + length]
    assert content.lacking(0, max(content.size, 1)) + content.used >= -(-content.size // PAGE)
