"""The directory of a shard server on a disk that fails: spaces are made and removed all the same, or not seen."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from tests.shardserver.server import MARKER, STORE
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local.model.ids import ShardUid
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.volume import Volume

UID = ShardUid(bytes(STORE))


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
        files.fail("open", lambda path: path.endswith("/spaces"), errno.EMFILE, times=2)
        for _ in range(2):
            with pytest.raises(Refusal, match="EMFILE"):
                volume.create(UID, "issuer", MARKER)
            assert not is_seen(volume)
        volume.create(UID, "issuer", MARKER)
        assert is_seen(volume)


def test_a_space_is_removed_where_an_earlier_one_still_lies_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    runtime = troubled_runtime(TroubledFiles())
    with closing(Volume(runtime, str(tmp_path))) as volume, monkeypatch.context() as patch:
        patch.setattr("zstor_local.shardserver.volume.shutil.rmtree", fails)
        for _ in range(2):
            volume.create(UID, "issuer", MARKER)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                volume.remove(UID)
            assert not is_seen(volume)
    Volume(runtime, str(tmp_path)).close()
    assert not list((tmp_path / "spaces").iterdir())
