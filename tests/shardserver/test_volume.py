"""The directory of a shard server on a disk that fails: spaces are made and removed all the same, or not seen."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.shardserver.server import MARKER, NAMESPACE, SESSION, STORE, scanned, version
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local.model.ids import ShardUid, ShareId
from zstor_local.shards.http.wire import Batch, Fence
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.volume import Volume

UID = ShardUid(bytes(STORE))
FENCE = Fence(1, 1, SESSION)


def is_seen(volume: Volume) -> bool:
    try:
        volume.find(UID)
    except Refusal:
        return False
    return True


def test_a_space_that_may_not_last_is_not_seen_however_often_it_is_made(tmp_path: Path) -> None:
    """Or it would be there the next time, and never made to last."""
    files = TroubledFiles()
    with closing(Volume(troubled_runtime(files), str(tmp_path))) as volume:
        files.fail("open", lambda path: path.endswith("/spaces"), errno.EMFILE, times=3)  # by whoever looks, too
        for _ in range(2):
            with pytest.raises(Refusal, match="EMFILE"):
                volume.create(UID, "issuer", MARKER)
            assert not is_seen(volume)
        volume.create(UID, "issuer", MARKER)
        assert is_seen(volume)


def test_a_space_that_may_not_last_is_not_seen_where_it_cannot_be_put_away(tmp_path: Path) -> None:
    """Nor is it in the way of the next one once the disk is well."""
    files = TroubledFiles()
    runtime = troubled_runtime(files)
    with closing(Volume(runtime, str(tmp_path))) as volume:
        files.fail("fsync", lambda path: path.endswith("/spaces"), errno.EIO)
        files.fail("rename", lambda path: ".gone" in path, errno.EIO)
        with pytest.raises(Refusal, match="EIO"):
            volume.create(UID, "issuer", MARKER)
        for _ in range(2):  # a later sync proves nothing
            with pytest.raises(Refusal, match="must be started again"):
                volume.find(UID)
    with closing(Volume(runtime, str(tmp_path))) as volume:
        volume.create(UID, "issuer", MARKER)
        assert is_seen(volume)


@pytest.mark.parametrize(("operation", "said"), [("fsync", "must be started again"), ("open", "not on this server")])
def test_a_space_is_not_said_to_be_gone_before_that_lasts(tmp_path: Path, operation: str, said: str) -> None:
    """Whoever asks again is not told otherwise, and none is made in its place: it might be back with a power loss."""
    files = TroubledFiles()
    with closing(Volume(troubled_runtime(files), str(tmp_path))) as volume:
        volume.create(UID, "issuer", MARKER)
        files.fail(operation, lambda path: path.endswith("/spaces"), errno.EIO if operation == "fsync" else errno.EMFILE)
        with pytest.raises(Refusal, match=r"EIO|EMFILE"):
            volume.remove(UID)
        before = files.calls["fsync"]
        with pytest.raises(Refusal, match=said):
            volume.find(UID)
        assert operation == "fsync" or files.calls["fsync"] > before


def test_nobody_makes_so_many_spaces_that_others_have_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a quota, descriptors and memory of its own; those that are not open count too."""
    monkeypatch.setattr("zstor_local.shardserver.volume.SPACES_MAX", 2)
    first, second, third = (ShardUid(bytes([number]) * 16) for number in (1, 2, 3))
    runtime = troubled_runtime(TroubledFiles())
    with closing(Volume(runtime, str(tmp_path))) as volume:
        volume.create(first, "issuer", MARKER)
    with closing(Volume(runtime, str(tmp_path))) as volume:
        volume.create(second, "issuer", MARKER)
        with pytest.raises(Refusal) as refused:
            volume.create(third, "issuer", MARKER)
        assert refused.value.type == "full"
        volume.create(first, "issuer", MARKER)  # again
        volume.remove(second)
        volume.create(third, "issuer", MARKER)
        volume.create(second, "another", MARKER)


def test_a_space_is_removed_where_an_earlier_one_still_lies_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be removed keeps no server from starting."""

    def fails(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    runtime = troubled_runtime(TroubledFiles())
    with monkeypatch.context() as patch:
        patch.setattr("zstor_local.shardserver.volume.shutil.rmtree", fails)
        for times in range(1, 3):
            with closing(Volume(runtime, str(tmp_path))) as volume:
                volume.create(UID, "issuer", MARKER)
                volume.remove(UID)
                assert not is_seen(volume)
                assert len(list((tmp_path / "spaces").iterdir())) == times
        assert "the shard server's disk failed (EIO)" in caplog.text
    Volume(runtime, str(tmp_path)).close()
    assert not list((tmp_path / "spaces").iterdir())


def test_a_space_is_closed_where_its_disk_fails(tmp_path: Path) -> None:
    """Or each that is removed there would leave its files open."""
    files = TroubledFiles()
    with closing(Volume(troubled_runtime(files), str(tmp_path))) as volume:
        before = open_descriptors()
        space = volume.create(UID, "issuer", MARKER)
        space.raise_fence(FENCE)
        space.append(FENCE, 1, Batch([scanned(1, b"share")]))
        for number in (1, 2):
            space.large.put_part(FENCE, NAMESPACE, ShareId(version(number), 0), 0, b"part")
        files.fail("unlink", lambda path: path.endswith(".0"), errno.EROFS, times=None)
        volume.remove(UID)
        assert open_descriptors() == before
