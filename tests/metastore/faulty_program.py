"""What the sweep of faults takes apart: a metastore is made, opened, written, folded; with the shim loaded, a fork for each try.

A line on standard input: number, mode, errno, and an empty directory for the store. A line on standard output: what became of it.
"""

from __future__ import annotations

import ctypes
import os
import sys

from zstor_local.metastore.base import CommitRefused, CommitUnknown, MetastoreClosed, Row, StoreState, Transaction
from zstor_local.metastore.reserve import Reserve
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.model.ids import KeyHash, NamespaceId, StoreId, Version
from zstor_local.model.record import Envelope, Kind
from zstor_local.store.engines import METASTORE, RESERVE, SqliteEngines
from zstor_local.system import RealFiles

SPACE = NamespaceId(b"namespace id 16b")
STORE = StoreId(b"store id 16bytes")
COMMITS = 5


def envelope(number: int) -> Envelope:
    return Envelope(Kind.OBJECT, SPACE, KeyHash(bytes(16)), Version(number.to_bytes(16)), number, bytes([number]) * 3_000)


def transaction(number: int) -> Transaction:
    rows = [Row(SPACE, "the same", envelope(number)), Row(SPACE, f"own {number}", envelope(number))]
    return Transaction(StoreState(sequence=number, reserved=1_000, writer=1), rows=rows)


class Once(Reserve):
    """Not made again: what is there in the end tells whether it was given up."""

    def keep(self) -> None:
        if not self.given_up:
            super().keep()


def program(store: str, told: int) -> None:
    """Tell after each step what was promised: `a 3` it is there, `r 3` it is not, `u 3` nobody knows."""

    def tell(text: str) -> None:
        os.write(told, f"{text}\n".encode())

    SqliteEngines(RealFiles()).create_metastore(store, STORE, [transaction(1)])
    tell("a 1")
    reserve = Once(RealFiles(), f"{store}/{RESERVE}", 4_096)
    reserve.keep()
    metastore = SqliteMetastore(f"{store}/{METASTORE}", reserve=reserve)
    for number in range(2, COMMITS + 1):
        try:
            metastore.commit(transaction(number))
        except CommitRefused:
            tell(f"r {number}")
        except (CommitUnknown, MetastoreClosed) as error:
            tell(f"{'u' if isinstance(error, CommitUnknown) else 'r'} {number}")
        else:
            tell(f"a {number}")
        if number == 3:
            try:
                metastore.checkpoint()
            except CommitUnknown:
                tell("closed")
    metastore.close()


def main() -> None:
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for line in sys.stdin:
        number, mode, code, store = line.rstrip("\n").split(" ", 3)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            shim.shim_arm(store.encode(), int(number), int(mode), int(code))
            try:
                program(store, writer)
            except Exception as error:
                os.write(writer, f"error {type(error).__name__}\n".encode())
            os.write(writer, f"points {shim.shim_count()}\n".encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            words = ", ".join(told.read().splitlines())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{status}: {words}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
