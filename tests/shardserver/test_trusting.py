"""Which trust document a server goes by after a restart: the newest that it was sent, if that goes back to what it is given again."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from tests.shardserver.server import STORE, Issuer
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local.access.signing import sign_trust
from zstor_local.access.trust import Trust
from zstor_local.access.verify import verify_trust
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.trusting import KeptLost, TrustKeeper
from zstor_local.system import real_runtime

FIRST, SECOND, THIRD = Issuer(STORE), Issuer(STORE), Issuer(STORE)


def started(directory: Path, given: Issuer, updated: int = 0) -> tuple[TrustKeeper, Trust]:
    """A server that is given this one's document."""
    keeper = TrustKeeper(real_runtime(), str(directory))
    (trust,) = keeper.newest([json.dumps(given.document(updated=updated)).encode()])
    return keeper, trust


def send(keeper: TrustKeeper, known: Trust, signer: Issuer, holds: Issuer, updated: int) -> Trust:
    document = sign_trust(signer.key, holds.document(updated=updated))
    trust = verify_trust(document, known)
    keeper.keep(trust.issuer, document.encode())
    return trust


def kids(trust: Trust) -> list[str]:
    return [*trust.keys]


def test_a_key_that_took_the_place_of_others_stays_after_restarts(tmp_path: Path) -> None:
    keeper, trust = started(tmp_path, FIRST)
    trust = send(keeper, trust, FIRST, SECOND, 1)
    send(keeper, trust, SECOND, THIRD, 2)
    for _ in range(2):
        keeper, trust = started(tmp_path, FIRST)
        assert kids(trust) == [THIRD.key.kid]
    send(keeper, trust, THIRD, THIRD, 3)
    _, trust = started(tmp_path, FIRST)
    assert (kids(trust), trust.updated) == ([THIRD.key.kid], 3)


def test_who_gives_other_keys_begins_anew(tmp_path: Path) -> None:
    """As where somebody with an older key has shut the owner out."""
    keeper, trust = started(tmp_path, FIRST)
    send(keeper, trust, FIRST, SECOND, 1 << 60)
    keeper, trust = started(tmp_path, THIRD)
    assert kids(trust) == [THIRD.key.kid]
    send(keeper, trust, THIRD, THIRD, 1)
    _, trust = started(tmp_path, THIRD)
    assert trust.updated == 1
    _, trust = started(tmp_path, FIRST)
    assert kids(trust) == [FIRST.key.kid]


def test_a_newer_document_that_is_given_counts(tmp_path: Path) -> None:
    keeper, trust = started(tmp_path, FIRST)
    send(keeper, trust, FIRST, SECOND, 1)
    _, trust = started(tmp_path, FIRST, updated=2)
    assert (kids(trust), trust.updated) == ([FIRST.key.kid], 2)


def test_what_an_earlier_version_kept_counts_by_its_signature(tmp_path: Path) -> None:
    keeper, trust = started(tmp_path, FIRST)
    send(keeper, trust, FIRST, SECOND, 1)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes().split(b"\n")[0])
    _, trust = started(tmp_path, FIRST)
    assert kids(trust) == [SECOND.key.kid]


def test_what_is_kept_and_cannot_be_read_is_named(tmp_path: Path) -> None:
    """And not passed over: what it revokes would count again."""
    keeper, trust = started(tmp_path, FIRST)
    send(keeper, trust, FIRST, SECOND, 1)
    files = TroubledFiles()
    files.fail("open", lambda path: True, errno.EIO)
    keeper = TrustKeeper(troubled_runtime(files), str(tmp_path))
    (kept,) = tmp_path.iterdir()
    with pytest.raises(OSError, match="error") as failed:
        list(keeper.newest([json.dumps(FIRST.document()).encode()]))
    assert str(kept) in str(failed.value.strerror)


@pytest.mark.parametrize("damage", [b"", b"\0" * 600, b"half", b"a byte", b"the root"])
def test_what_is_kept_and_damaged_is_named_too(tmp_path: Path, damage: bytes) -> None:
    keeper, trust = started(tmp_path, FIRST)
    send(keeper, trust, FIRST, SECOND, 1)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    middle = len(whole) // 2
    damaged = {b"half": whole[:middle], b"a byte": whole[:middle] + b"\x80" + whole[middle + 1 :], b"the root": whole[:-9]}
    kept.write_bytes(damaged.get(damage, damage))
    with pytest.raises(KeptLost, match="is damaged") as failed:
        started(tmp_path, FIRST)
    assert str(kept) in str(failed.value.strerror)
    kept.write_bytes(whole)
    assert kids(started(tmp_path, FIRST)[1]) == [SECOND.key.kid]


def test_no_sync_of_the_directory_is_believed_after_one_that_failed(tmp_path: Path) -> None:
    """What was revoked would count again after a power loss."""
    files = TroubledFiles()
    keeper = TrustKeeper(troubled_runtime(files), str(tmp_path))
    files.fail("fsync", lambda path: path == str(tmp_path), errno.EIO)
    with pytest.raises(OSError, match="error"):
        keeper.keep("issuer", b"document")
    with pytest.raises(Refusal, match="started again"):
        keeper.keep("issuer", b"document")
    TrustKeeper(troubled_runtime(files), str(tmp_path)).keep("issuer", b"document")
