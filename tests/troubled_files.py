"""Real files that can be told to fail, and that count their calls: for tests on real directories."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zstor_local.runtime import Buffer, FileStatus, Runtime
from zstor_local.system import RealFiles, real_runtime

PAGE = 4_096

Where = Callable[[str], bool]


@dataclass(slots=True)
class Trouble:
    """Something that goes wrong with an operation, `times` times or (None) for ever."""

    operation: str
    where: Where
    code: int
    times: int | None


class TroubledFiles(RealFiles):
    """The kernel's files, with troubles in between. Operations are named as the methods; `*` is all that change something."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._paths: dict[int, str] = {}
        self._troubles: list[Trouble] = []
        self._bad: list[tuple[str, range]] = []

    def fail(self, operation: str, where: Where, code: int, times: int | None = 1) -> None:
        """The operation fails with this errno on paths where `where` holds."""
        self._troubles.append(Trouble(operation, where, code, times))

    def ruin(self, path: str, offset: int, length: int = 1) -> None:
        """The pages of a file where these bytes lie cannot be read any more: a read ends before them, or fails at them with EIO."""
        self._bad.append((path, range(offset // PAGE * PAGE, -(-(offset + length) // PAGE) * PAGE)))

    def heal(self) -> None:
        self._troubles.clear()
        self._bad.clear()

    def _meet(self, operation: str, path: str, *, changes: bool = True) -> None:
        self.calls[operation] += 1
        for trouble in self._troubles:
            named = trouble.operation == operation or (changes and trouble.operation == "*")
            if named and trouble.times != 0 and trouble.where(path):
                if trouble.times is not None:
                    trouble.times -= 1
                raise OSError(trouble.code, os.strerror(trouble.code), path)

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        self._meet("open", path, changes=bool(flags & os.O_CREAT))
        fd = super().open(path, flags, mode)
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        self._meet("close", self._paths.pop(fd, ""), changes=False)  # where that fails it is closed all the same

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        path = self._paths.get(fd, "")
        self._meet("pread", path, changes=False)
        for ruined, bad in self._bad:
            if ruined == path and offset < bad.stop and offset + length > bad.start:
                if offset >= bad.start:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), path)
                length = bad.start - offset
        return super().pread(fd, length, offset)

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        self._meet("preadv", self._paths.get(fd, ""), changes=False)
        return super().preadv(fd, buffers, offset)

    def preadv_nowait(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        self._meet("preadv_nowait", self._paths.get(fd, ""), changes=False)
        return super().preadv_nowait(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._meet("pwritev", self._paths.get(fd, ""))
        return super().pwritev(fd, buffers, offset)

    def fsync(self, fd: int) -> None:
        self._meet("fsync", self._paths.get(fd, ""))
        super().fsync(fd)

    def fdatasync(self, fd: int) -> None:
        self._meet("fdatasync", self._paths.get(fd, ""))
        super().fdatasync(fd)

    def syncfs(self, fd: int) -> None:
        self._meet("syncfs", self._paths.get(fd, ""))
        super().syncfs(fd)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._meet("allocate", self._paths.get(fd, ""))
        super().allocate(fd, offset, length)

    def list(self, path: str) -> list[str]:
        self._meet("list", path, changes=False)
        return super().list(path)

    def status(self, fd: int) -> FileStatus:
        self._meet("status", self._paths.get(fd, ""), changes=False)
        return super().status(fd)

    def path_status(self, path: str, *, follow: bool = True) -> FileStatus:
        self._meet("path_status", path, changes=False)
        return super().path_status(path, follow=follow)

    def rename(self, old: str, new: str) -> None:
        self._meet("rename", new)
        super().rename(old, new)

    def unlink(self, path: str) -> None:
        self._meet("unlink", path)
        super().unlink(path)

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        self._meet("mkdir", path)
        super().mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        self._meet("rmdir", path)
        super().rmdir(path)


def troubled_runtime(files: TroubledFiles) -> Runtime:
    """The real world but for these files."""
    real = real_runtime()
    return Runtime(files, real.clock, real.randomness, real.threads, real.readiness)
