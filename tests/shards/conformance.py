"""The laws of shards.base.Shard, as tests that every shard passes: inherit and give a `ground` fixture."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest

from tests.shards.ground import NAMESPACE, POLICY, Ground, entry, read_share, version, write_share
from tests.shards.http_ground import HttpGround
from zstor_local.model.ids import ShareId
from zstor_local.model.record import Kind
from zstor_local.shards.base import Entry, ScannedEntry, Shard, ShardError, ShareMissing, ShareWriter

AnyGround = Ground | HttpGround
SHARE = ShareId(version(1), 2)


def append_and_flush(shard: Shard, entries: Sequence[Entry]) -> None:
    shard.append(entries, 0)
    shard.flush()


def write_and_finish(writer: ShareWriter, block: bytes) -> None:
    writer.write(0, [block])
    writer.finish(b"index", len(block), b"")


def aborted_by(stack: ExitStack, writer: ShareWriter) -> ShareWriter:
    stack.callback(writer.abort)
    return writer


class ShardLaws:
    """What holds for every shard."""

    # --- Records and small shares ---

    def test_what_was_flushed_is_scanned_in_the_order_written(self, ground: AnyGround) -> None:
        shard = ground.new()
        written = [entry(1, b"share one"), entry(2), entry(3, b"x" * 50_000, index=254), entry(4, kind=Kind.TOMBSTONE)]
        shard.append(written[:2], committed=0)
        shard.append(written[2:], committed=2)
        shard.flush()
        wanted = [ScannedEntry(each, committed) for each, committed in zip(written, (0, 0, 2, 2), strict=True)]
        assert list(shard.scan()) == wanted
        reopened = ground.reopen()
        assert list(reopened.scan()) == wanted
        assert list(reopened.records()) == [each.envelope.pack() for each in written]

    def test_a_small_share_is_read_back_by_ranges(self, ground: AnyGround) -> None:
        shard = ground.new()
        shard.append([entry(1, bytes(range(200)), index=2)], 0)
        shard.flush()
        reader = shard.open_share(SHARE, small=True)
        assert bytes(reader.read(0, 200)) == bytes(range(200))
        assert bytes(reader.read(50, 10)) == bytes(range(50, 60))
        assert bytes(reader.read(190, 100)) == bytes(range(190, 200))
        assert bytes(reader.read(500, 10)) == b""
        reader.close()

    def test_an_empty_small_share_is_there(self, ground: AnyGround) -> None:
        shard = ground.new()
        shard.append([entry(1, b"", index=2)], 0)
        shard.flush()
        assert read_share(shard, SHARE, small=True) == b""
        assert read_share(ground.reopen(), SHARE, small=True) == b""

    def test_small_shares_are_found_again_after_a_restart(self, ground: AnyGround) -> None:
        shard = ground.new()
        shard.append([entry(number, b"share %d" % number) for number in range(1, 50)], 0)
        shard.flush()
        shard = ground.reopen()
        for number in range(1, 50):
            assert read_share(shard, ShareId(version(number), 0), small=True) == b"share %d" % number

    def test_what_is_peeked_is_the_same_or_nothing(self, ground: AnyGround) -> None:
        shard = ground.new()
        shard.append([entry(1, b"small", index=2)], 0)
        shard.flush()
        write_share(shard, ShareId(version(2), 0), [b"large"])
        assert read_share(shard, SHARE, small=True) == b"small"
        for offset, length, wanted in ((0, 5, b"small"), (2, 2, b"al"), (3, 9, b"ll"), (5, 1, b""), (9, 1, b"")):
            peeked = shard.peek(SHARE, offset, length)
            assert peeked is None or bytes(peeked) == wanted
        for other in (ShareId(version(2), 0), ShareId(version(1), 1), ShareId(version(3), 0)):
            assert shard.peek(other, 0, 5) is None

    # --- Large shares ---

    def test_a_large_share_is_read_back_by_ranges_and_its_table_too(self, ground: AnyGround) -> None:
        shard = ground.new()
        write_share(shard, SHARE, [b"first", b"second", b"third"])
        for opened in ground.now_and_after_a_restart():
            reader = opened.open_share(SHARE, small=False)
            assert bytes(reader.read(0, 16)) == b"firstsecondthird"
            assert bytes(reader.read(5, 6)) == b"second"
            reader.close()

    def test_a_large_share_is_not_there_before_it_is_finished(self, ground: AnyGround) -> None:
        shard = ground.new()
        writer = shard.begin(SHARE, NAMESPACE, POLICY)
        writer.write(0, [b"first", b"second"])
        with pytest.raises(ShareMissing):
            read_share(shard, SHARE, small=False)
        writer.finish(b"index", 11, b"")
        assert read_share(shard, SHARE, small=False, length=11) == b"firstsecond"

    def test_after_an_abort_nothing_is_left(self, ground: AnyGround) -> None:
        shard = ground.new()
        writer = shard.begin(SHARE, NAMESPACE, POLICY)
        writer.write(0, [b"first"])
        writer.abort()
        with pytest.raises(ShareMissing):
            read_share(shard, SHARE, small=False)
        writer = shard.begin(SHARE, NAMESPACE, POLICY)
        writer.write(0, [bytes(5)])
        writer.finish(b"index", 5, b"")
        writer.abort()
        assert read_share(shard, SHARE, small=False, length=5) == bytes(5)  # what is finished stays; freeing it is another matter
        assert ground.unfinished() == []

    def test_an_abort_leaves_the_share_that_was_there(self, ground: AnyGround) -> None:
        shard = ground.new()
        write_share(shard, SHARE, [b"good"])
        writer = shard.begin(SHARE, NAMESPACE, POLICY)
        writer.write(0, [b"anew"])
        writer.abort()
        assert read_share(shard, SHARE, small=False, length=4) == b"good"

    def test_it_tells_every_share_that_lies_here_and_no_other(self, ground: AnyGround) -> None:
        shard = ground.new()
        shard.append([entry(number, b"small", index=2) for number in range(1, 6)], 0)
        shard.flush()
        for number in range(6, 9):
            write_share(shard, ShareId(version(number), 1), [b"large"])
        shard.free([ShareId(version(3), 2)], small=True)
        shard.free([ShareId(version(7), 1)], small=False)
        shard.settle(small=True)
        shard.settle(small=False)
        unfinished = shard.begin(ShareId(version(9), 0), NAMESPACE, POLICY)
        for opened in (shard, ground.reopen()):
            assert sorted(opened.held(small=True)) == [ShareId(version(number), 2) for number in (1, 2, 4, 5)]
            assert sorted(opened.held(small=False)) == [ShareId(version(number), 1) for number in (6, 8)]
        unfinished.abort()

    def test_two_shares_of_one_version_are_two(self, ground: AnyGround) -> None:
        shard = ground.new()
        write_share(shard, ShareId(version(1), 0), [b"zero"])
        write_share(shard, ShareId(version(1), 1), [b"one!"])
        assert read_share(shard, ShareId(version(1), 0), small=False, length=4) == b"zero"
        assert read_share(shard, ShareId(version(1), 1), small=False, length=4) == b"one!"

    # --- Missing and freed ---

    @pytest.mark.parametrize("small", [True, False])
    def test_what_was_never_there_is_missing_and_freeing_it_is_fine(self, ground: AnyGround, small: bool) -> None:
        shard = ground.new()
        with pytest.raises(ShareMissing):
            read_share(shard, SHARE, small=small)
        shard.free([SHARE], small=small)
        shard.settle(small=small)

    @pytest.mark.parametrize("small", [True, False])
    def test_what_was_freed_is_missing_for_ever(self, ground: AnyGround, small: bool) -> None:
        shard = ground.new()
        kept = ShareId(version(2), 2)
        shard.append([entry(1, b"small", index=2), entry(2, b"small", index=2)], 0)
        for share in (SHARE, kept):
            write_share(shard, share, [b"large"])
        shard.free([SHARE], small=small)
        shard.settle(small=small)
        for opened in ground.now_and_after_a_restart():
            with pytest.raises(ShareMissing):
                read_share(opened, SHARE, small=small)
        assert read_share(ground.opened[0], kept, small=small, length=5) == (b"small" if small else b"large")

    # --- Failing ---

    def test_after_a_failed_flush_it_takes_nothing_more_in_this_process(self, ground: AnyGround) -> None:
        shard = ground.new()
        shard.append([entry(1, b"kept", index=2)], 0)
        shard.flush()
        shard.append([entry(2)], 0)
        ground.faults.fail("fdatasync", lambda path: path.endswith(".log"), errno.EIO)
        with pytest.raises(ShardError) as caught:
            shard.flush()
        assert caught.value.state == "failed"
        assert "EIO" in str(caught.value)
        ground.faults.heal()  # a second fdatasync would say that all is well
        with pytest.raises(ShardError):
            shard.flush()
        with pytest.raises(ShardError):
            shard.append([entry(3)], 0)
        with pytest.raises(ShardError):
            shard.free([SHARE], small=True)
        assert shard.check() == "failed"
        assert read_share(shard, SHARE, small=True) == b"kept"

    def test_after_a_torn_append_nothing_follows(self, ground: AnyGround) -> None:
        shard = ground.new()
        ground.faults.fail("pwritev", lambda path: path.endswith(".log"), errno.EIO)
        with pytest.raises(ShardError):  # at one of the two
            append_and_flush(shard, [entry(1, b"torn", index=2)])
        assert shard.check() == "failed"
        with pytest.raises(ShardError):
            shard.append([entry(2)], 0)
        with pytest.raises(ShareMissing):
            read_share(shard, SHARE, small=True)

    @pytest.mark.parametrize(("code", "state"), [(errno.ENOSPC, "full"), (errno.EROFS, "readonly"), (errno.EIO, "failed")])
    def test_a_large_share_that_does_not_fit_tells_why(self, ground: AnyGround, code: int, state: str) -> None:
        shard = ground.new()
        writer = shard.begin(SHARE, NAMESPACE, POLICY)
        ground.faults.fail("pwritev", lambda path: path == ground.unfinished_path(SHARE), code)
        with pytest.raises(ShardError) as caught:
            write_and_finish(writer, b"first")
        assert caught.value.state == state
        writer.abort()
        assert ground.unfinished() == []

    def test_a_large_share_that_cannot_even_begin_leaves_nothing(self, ground: AnyGround) -> None:
        shard = ground.new()
        ground.faults.fail("pwritev", lambda path: path == ground.unfinished_path(SHARE), errno.ENOSPC)
        with ExitStack() as begun, pytest.raises(ShardError):  # at the beginning, or when it is to be finished
            write_and_finish(aborted_by(begun, shard.begin(SHARE, NAMESPACE, POLICY)), b"first")
        assert ground.unfinished() == []

    def test_without_its_marker_it_is_missing_and_never_written(self, ground: AnyGround) -> None:
        shard = ground.new()
        shard.append([entry(1, b"share", index=2)], 0)
        shard.flush()
        ground.lose_marker(shard)
        before = ground.content(ground.segment(1)), ground.names(ground.root())
        assert shard.check() == "missing"
        attempts: list[Callable[[], object]] = [
            lambda: shard.append([entry(2)], 0),
            lambda: shard.begin(ShareId(version(3), 0), NAMESPACE, POLICY),
            lambda: shard.free([SHARE], small=True),
            lambda: shard.free([SHARE], small=False),
        ]
        for refused in attempts:
            with pytest.raises(ShardError) as caught:
                refused()
            assert caught.value.state == "missing"
        assert (ground.content(ground.segment(1)), ground.names(ground.root())) == before
        ground.close()
        with pytest.raises(ShardError) as caught:
            ground.open()
        assert caught.value.state == "missing"

    def test_a_share_that_is_finished_when_the_marker_has_gone_is_refused(self, ground: AnyGround) -> None:
        shard = ground.new()
        writer = shard.begin(SHARE, NAMESPACE, POLICY)
        ground.lose_marker(shard)
        with pytest.raises(ShardError):
            writer.finish(b"index", 0, b"")
        writer.abort()

    def test_it_tells_its_capacity(self, ground: AnyGround) -> None:
        capacity = ground.new().capacity()
        assert 0 < capacity.free <= capacity.total

    def test_a_shard_that_is_well_says_so(self, ground: AnyGround) -> None:
        shard = ground.new()
        assert shard.check() == "ok"
        assert shard.last_error() is None
        assert (shard.number, shard.id, shard.url) == (0, "shard0", ground.url())
