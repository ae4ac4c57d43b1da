"""Directory shards obey the laws, on real files and on simulated ones; what only a directory can suffer is here too."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shards.conformance import SHARE, ShardLaws
from tests.shards.ground import NAMESPACE, POLICY, STORE, Ground, crashed, entry, keys, read_share, uid, version, write_share
from tests.simulation.files import SimulatedFiles
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.world import Mount, World
from zstor_local.coding.block import ChunkShape
from zstor_local.coding.share import pack_share_end
from zstor_local.coding.table import pack_chunk_table, parse_chunk_table
from zstor_local.model.ids import ShareId, StoreId
from zstor_local.model.storewide import ShardEntry
from zstor_local.runtime import SteadyDevice
from zstor_local.sandbox import Sandbox, parse_mounts
from zstor_local.shards.base import ShardError, ShareMissing
from zstor_local.shards.directory import DirectoryShard, marker_store
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.marker import BadMarker, Marker
from zstor_local.shards.share_files import TEMPORARY


class TestOnRealFiles(ShardLaws):
    @pytest.fixture
    def ground(self, real: Ground) -> Ground:
        return real


class TestOnSimulatedFiles(ShardLaws):
    @pytest.fixture
    def ground(self, simulated: Ground) -> Ground:
        return simulated

    def test_a_finished_share_and_a_flushed_entry_survive_a_power_loss(self) -> None:
        world = World(2, [Mount("/disk")])
        ground = Ground(world.runtime, "/disk", world.files)
        shard = ground.new()
        shard.append([entry(1, b"share", index=2)], 0)
        shard.flush()
        write_share(shard, ShareId(version(2), 0), [b"large"])
        tried = 0
        for outcome in outcomes(world.files.unpinned()):
            after = world.crash(outcome)
            shard = Ground(after.runtime, "/disk", after.files).open(writer=2)
            assert read_share(shard, SHARE, small=True) == b"share"
            assert read_share(shard, ShareId(version(2), 0), small=False, length=5) == b"large"
            tried += 1
        assert tried > 1


def test_making_a_shard_again_completes_what_was_interrupted(real: Ground) -> None:
    root = Path(real.root())
    (root / "log").mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "tmp" / "marker").write_bytes(b"half a mark")
    assert real.new().check() == "ok"


TABLE = """\
21 1 254:0 / / ro,relatime - ext4 /dev/vda rw
22 21 0:50 / /home ro,nodev - tmpfs tmpfs ro,mode=755,uid=1000
23 22 254:0 /home/ann/zstor /home/ann/zstor rw,relatime - ext4 /dev/vda rw
24 21 254:1 / /mnt/blue rw,relatime - ext4 /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("root", "line"),
    [
        ("/home/ann/disk", "BindPaths=/home/ann/disk"),
        ("/mnt/red", "ReadWritePaths=/mnt/red"),
        ("/home/ann/zstor/shards/6", None),
        ("/mnt/blue/zstor", None),
    ],
)
def test_a_sandbox_says_how_a_directory_is_opened_for_a_shard(root: str, line: str | None) -> None:
    said = Sandbox("zstor.service", parse_mounts(TABLE, 1000)).against_shard(root)
    assert said is None if line is None else said is not None and f"[Service] the line  {line}  ," in said


def test_a_sandbox_knows_mounts_whose_names_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOCATION_ID", "1")
    (tmp_path / "mountinfo").write_bytes(TABLE.encode() + b"25 21 254:2 / /mnt/\xff\x0c ro,relatime - ext4 /dev/vdc ro\n")
    (tmp_path / "cgroup").write_text("0::/user.slice/zstor.service\n")
    sandbox = Sandbox.of_this_process(str(tmp_path))
    assert sandbox is not None
    said = sandbox.against_shard(os.fsdecode(b"/mnt/\xff\x0c/zstor"))
    assert said is not None
    assert "ReadWritePaths=" in said


def test_no_shard_is_made_in_a_directory_that_a_sandbox_throws_away(real: Ground) -> None:
    index = LogIndex(":memory:")
    engine = real.engine(index, lambda root: f"{root} is closed")
    with pytest.raises(ShardError, match="is closed"):
        engine.create(real.root(), Marker(STORE, uid(0), 0, 0))
    assert not Path(real.root()).exists()
    index.close()


def test_a_shard_that_a_sandbox_hides_says_what_opens_it(real: Ground) -> None:
    """One that was added before the daemon was a service, or that its units do not name: no disk has to be mounted."""
    index = LogIndex(":memory:")
    engine = real.engine(index, lambda root: f"{root} is closed")
    with pytest.raises(ShardError, match="is closed") as caught:
        engine.open(ShardEntry(0, uid(0), "shard0", real.root(), ""), real.root())
    assert caught.value.state == "missing"
    index.close()


def test_making_a_shard_twice_keeps_its_marker(real: Ground) -> None:
    real.create()
    before = real.content(f"{real.root()}/marker")
    real.create()
    assert real.content(f"{real.root()}/marker") == before


def test_a_directory_that_is_another_shard_is_not_made_this_one(real: Ground) -> None:
    real.create(1)
    shutil.copytree(real.root(1), real.root(0))
    with pytest.raises(BadMarker, match="already another shard"):
        real.create(0)


def test_a_directory_of_another_store_is_not_made_this_ones(real: Ground) -> None:
    real.create(0, store=StoreId(b"another store 16"))
    with pytest.raises(BadMarker, match="another store"):
        real.create(0)
    assert marker_store(real.runtime.files, real.root()) == b"another store 16"


def test_a_shard_in_another_shards_place_is_missing(real: Ground) -> None:
    real.create(1)
    Path(real.root(1)).rename(real.root(0))
    with pytest.raises(ShardError, match="is another shard of this store than shard0") as caught:
        real.open(0)
    assert caught.value.state == "missing"


def test_an_empty_directory_is_missing_and_stays_empty(real: Ground) -> None:
    Path(real.root()).mkdir()
    with pytest.raises(ShardError, match="may not be mounted") as caught:
        real.open()
    assert caught.value.state == "missing"
    assert real.names(real.root()) == []


def test_a_directory_that_was_emptied_while_open_is_missing_and_never_filled(real: Ground) -> None:
    shard = real.new()
    for each in Path(real.root()).iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    assert shard.check() == "missing"
    assert "unmounted or emptied" in (shard.last_error() or "")
    with pytest.raises(ShardError):
        shard.append([entry(1)], 0)
    with pytest.raises(ShardError):
        shard.begin(SHARE, NAMESPACE, POLICY)
    assert real.names(real.root()) == []


def test_another_disk_mounted_in_its_place_is_missing(real: Ground) -> None:
    shard = real.new()
    Path(real.root()).rename(f"{real.parent}/away")
    shutil.copytree(f"{real.parent}/away", real.root())
    assert shard.check() == "missing"
    assert shard.last_error() == "another marker lies where this shard's was"
    shutil.rmtree(real.root())
    Path(f"{real.parent}/away").rename(real.root())
    assert shard.check() == "missing"  # others may have written to it meanwhile: it has to be opened anew
    assert shard.may_return()
    assert real.reopen().check() == "ok"


def test_one_shard_is_for_one_daemon(real: Ground) -> None:
    real.new()
    with pytest.raises(ShardError, match="in use by another process") as caught:
        real.open(writer=None)
    assert caught.value.state == "failed"


HOLD = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"


def test_a_shard_that_another_process_holds_is_refused_until_it_lets_go(real: Ground) -> None:
    real.create()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, f"{real.root()}/marker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ShardError, match="in use"):
            real.open()
        process.communicate()
    assert real.open().check() == "ok"


def test_a_read_only_disk_is_known_at_the_start_and_still_read(real: Ground) -> None:
    shard = real.new()
    shard.append([entry(1, b"share", index=2)], 0)
    shard.flush()
    real.faults.fail("*", lambda path: True, errno.EROFS, times=None)
    shard = real.reopen()
    assert shard.check() == "readonly"
    assert read_share(shard, SHARE, small=True) == b"share"
    with pytest.raises(ShardError) as caught:
        shard.append([entry(2)], 0)
    assert caught.value.state == "readonly"


def test_a_disk_that_was_full_at_the_start_is_used_once_there_is_room(real: Ground) -> None:
    real.create()
    real.faults.fail("allocate", lambda path: True, errno.ENOSPC, times=2)
    shard = real.open()
    assert shard.check() == "ok"
    with pytest.raises(ShardError) as caught:
        shard.append([entry(1)], 0)
    assert caught.value.state == "full"
    assert real.names(f"{real.root()}/log") == []
    shard.append([entry(2, b"share", index=2)], 0)
    shard.flush()
    assert read_share(real.reopen(), ShareId(version(2), 2), small=True) == b"share"


def test_large_shares_are_freed_on_a_full_disk(real: Ground) -> None:
    shard = real.new()
    write_share(shard, SHARE, [b"large"])
    real.faults.fail("pwritev", lambda path: True, errno.ENOSPC, times=None)
    shard.free([SHARE], small=False)
    shard.settle(small=False)
    with pytest.raises(ShareMissing):
        shard.open_share(SHARE, small=False)


def test_what_was_freed_is_not_said_to_be_gone_before_that_lasts(real: Ground) -> None:
    """A later sync says nothing of what one that failed was to sync: the share would be back after a power loss, to stay for ever."""
    shard = real.new()
    write_share(shard, SHARE, [b"large"])
    shard.free([SHARE], small=False)
    real.faults.fail("fsync", lambda path: path.endswith(f"/shares/{SHARE.version.hex()[:2]}"), errno.EIO)
    for _ in range(2):
        with pytest.raises(ShardError) as caught:
            shard.settle(small=False)
        assert caught.value.state == "failed"
    shard = real.reopen()
    shard.free([SHARE], small=False)
    shard.settle(small=False)


def test_a_share_that_cannot_be_freed_keeps_no_room_of_those_behind_it(real: Ground) -> None:
    shard = real.new()
    others = [ShareId(version(number), 0) for number in (1, 2)]
    for share in others:
        write_share(shard, share, [b"large"])
    real.faults.fail("unlink", lambda path: others[0].version.hex() in path, errno.EIO, times=None)
    with pytest.raises(ShardError, match="EIO"):
        shard.free(others, small=False)
    assert [shard.has(share, small=False) for share in others] == [True, False]
    assert shard.check() == "ok"


def test_freeing_a_large_share_takes_its_unfinished_file_too(real: Ground) -> None:
    shard = real.new()
    writer = shard.begin(SHARE, NAMESPACE, POLICY)
    writer.write(0, [b"half"])
    writer._close()  # as a thread that was stopped
    assert real.unfinished() != []
    shard.free([SHARE], small=False)
    shard.settle(small=False)
    assert real.unfinished() == []


def test_a_start_clears_what_a_kill_left_on_its_way_in(real: Ground) -> None:
    writer = real.new().begin(SHARE, NAMESPACE, POLICY)
    writer.write(0, [b"half"])
    writer._close()
    assert real.unfinished() != []
    real.reopen()
    assert real.unfinished() == []


def test_a_share_is_synced_before_it_gets_its_name_and_the_directory_after(simulated: Ground) -> None:
    shard = simulated.new()
    write_share(shard, ShareId(SHARE.version, 0), [b"large"])  # makes the directory
    assert isinstance(simulated.faults, SimulatedFiles)
    before = simulated.faults.points
    write_share(shard, SHARE, [b"large"])
    calls = [site.name.rsplit(":", 1)[1].split("#")[0] for site in simulated.faults.sites[before:]]
    assert calls == ["open", "pwritev", "pwritev", "pwritev", "fsync", "rename", "fsync_directory"]


def test_a_share_that_says_something_of_being_closed_is_closed_once(real: Ground) -> None:
    """Its number may be another file's by then."""
    writer = real.new().begin(ShareId(version(1), 0), NAMESPACE, POLICY)
    real.faults.fail("close", lambda path: f"/{TEMPORARY}/" in path, errno.EIO)
    with pytest.raises(ShardError):
        writer.finish(b"", 0, b"")
    other = os.open(os.devnull, os.O_RDONLY)
    writer.abort()
    os.close(other)
    assert real.unfinished() == []


def test_a_sealed_table_is_found_by_the_footer(real: Ground) -> None:
    shard = real.new()
    writer = shard.begin(SHARE, NAMESPACE, POLICY)
    table = parse_chunk_table(pack_chunk_table([ChunkShape(100, 100, 0)]), 100, 1 << 20, k=2, padding="none")
    writer.write(0, [bytes(table.blocks_length)])
    writer.finish(pack_share_end(table, 12), table.blocks_length, b"sealed table")
    reader = shard.open_share(SHARE, small=False)
    assert bytes(reader.read_table(12)) == b"sealed table"
    with pytest.raises(ShareMissing):  # whoever wrote another footer does not decide how much is read
        reader.read_table(11)
    reader.close()
    size = len(real.content(share_path(real)))
    real.overwrite(share_path(real), size - 40, b"X")
    reader = shard.open_share(SHARE, small=False)
    with pytest.raises(ShareMissing):
        reader.read_table(12)
    reader.close()


def share_path(ground: Ground) -> str:
    name = SHARE.version.hex()
    return f"{ground.root()}/shares/{name[:2]}/{name}.{SHARE.index}"


def test_a_small_shares_table_is_never_asked_of_the_log(real: Ground) -> None:
    shard = real.new()
    shard.append([entry(1, b"share", index=2)], 0)
    shard.flush()
    with pytest.raises(ShareMissing):
        shard.open_share(SHARE, small=True).read_table(12)


def test_a_share_that_the_disk_does_not_give_is_an_error_and_not_missing(real: Ground) -> None:
    shard = real.new()
    shard.append([entry(1, b"share", index=2)], 0)
    shard.flush()
    write_share(shard, SHARE, [b"large"])
    for small in (True, False):
        reader = shard.open_share(SHARE, small=small)
        real.faults.fail("pread", lambda path: True, errno.EIO)
        with pytest.raises(ShardError) as caught:
            reader.read(0, 5)
        assert caught.value.state == "failed"
        assert bytes(reader.read(0, 5)) in (b"share", b"large")
        reader.close()


def test_two_opened_shards_stay_apart(real: Ground) -> None:
    zero, one = real.new(0), real.new(1)
    zero.append([entry(1, b"share", index=2)], 0)
    with pytest.raises(ShareMissing):
        one.open_share(SHARE, small=True)


def test_a_directory_of_shares_that_somebody_removed_is_made_anew(real: Ground) -> None:
    shard = real.new()
    write_share(shard, ShareId(version(1), 0), [b"first"])
    directory = f"{real.root()}/shares/{version(1).hex()[:2]}"
    shutil.rmtree(directory)
    write_share(shard, ShareId(version(1), 1), [b"again"])
    for opened in real.now_and_after_a_restart():
        assert read_share(opened, ShareId(version(1), 1), small=False, length=5) == b"again"
        assert [share.index for share in opened.held(small=False)] == [1]


def test_files_of_others_among_the_shares_are_passed_over(real: Ground) -> None:
    """Copies of shares too: what has not a share's own name and place is read as none, and freed as none."""
    shard = real.new()
    write_share(shard, SHARE, [b"first"])
    part, name = version(1).hex()[:2], version(1).hex()
    Path(f"{real.root()}/shares/ff").mkdir()
    for other in (
        ".DS_Store",
        f"{part}/.DS_Store",
        f"ff/{name}.2",
        f"{part}/{name}.02",
        f"{part}/{name.upper()}0.2",
        f"{part}/{part}.2",
    ):
        Path(f"{real.root()}/shares/{other}").write_bytes(b"x")
    assert list(shard.held(small=False)) == [SHARE]


@pytest.mark.parametrize("part", ["", "/00"])
def test_once_a_directory_of_shares_was_synced_in_vain_it_takes_nothing_more_in_this_process(simulated: Ground, part: str) -> None:
    """A second sync would say that all is well, and a power loss would take the share that was answered for."""
    shard = simulated.new()
    simulated.faults.fail("fsync_directory", lambda path: path == f"{simulated.root()}/shares{part}", errno.EIO)
    with pytest.raises(ShardError):
        write_share(shard, SHARE, [b"large"])
    assert shard.check() == "failed"
    with pytest.raises(ShardError):
        write_share(shard, SHARE, [b"large"])


@pytest.mark.parametrize("part", ["", "/00"])
def test_a_directory_of_shares_that_was_not_synced_for_want_of_descriptors_is_synced_by_the_next(simulated: Ground, part: str) -> None:
    shard = simulated.new()
    simulated.faults.fail("open", lambda path: path == f"{simulated.root()}/shares{part}", errno.EMFILE)
    with pytest.raises(ShardError):
        write_share(shard, SHARE, [b"large"])
    write_share(shard, SHARE, [b"large"])
    after = crashed(simulated, NOTHING)
    assert read_share(after.open(writer=2), SHARE, small=False, length=5) == b"large"
    after.close()


def test_a_flush_that_was_begun_and_not_waited_for_says_nothing_of_later_entries(real: Ground) -> None:
    class Begins(SteadyDevice):
        def begin_fdatasync(self, fd: int) -> Callable[[], None]:
            self.files.fdatasync(fd)
            return lambda: None

    real.create()
    listed = ShardEntry(0, uid(0), "shard0", real.root(), "")
    device, index = Begins(real.runtime.files), LogIndex(":memory:")
    shard = DirectoryShard(device, listed, real.root(), store_id=STORE, keys=keys(), index=index)
    real.opened.append(shard)
    shard.start(1, real.runtime.randomness)
    shard.append([entry(1, b"share")], 0)
    shard.start_flush()
    shard.append([entry(2, b"share")], 0)
    real.faults.fail("fdatasync", lambda path: True, errno.EIO)
    with pytest.raises(ShardError):
        shard.flush()


def test_a_new_shard_has_nothing_to_warn_of(real: Ground, caplog: pytest.LogCaptureFixture) -> None:
    real.new()
    assert not caplog.text


@pytest.mark.parametrize("length", [0, 10, 39])
def test_a_share_that_was_cut_before_its_footer_has_no_table(real: Ground, length: int) -> None:
    """That is damage of the share: no fault of the disk, which goes on."""
    shard = real.new()
    write_share(shard, SHARE, [b"blocks"], table=b"sealed table")
    os.truncate(f"{real.root()}/shares/{SHARE.version.hex()[:2]}/{SHARE.version.hex()}.{SHARE.index}", length)
    reader = shard.open_share(SHARE, small=False)
    with pytest.raises(ShareMissing):
        reader.read_table(12)
    reader.close()
    assert shard.last_error() is None
