"""The zip file of the archive in its one canonical form: its content determines every byte.

Entries stand in order of their names, stored without compression (two zlib builds may disagree), with one time for all and no
other attribute than whether a file is a program. So a file can be checked by writing it again from its own content.
"""

import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import IO, BinaryIO

CHUNK = 1 << 20  # bytes compared at a time
UNIX = 3  # zip specification 4.4.2: attributes are those of Unix


@dataclass(frozen=True)
class Entry:
    """One file of the archive: its name, its size in bytes, whether it is a program, and how to read it."""

    name: str
    size: int
    executable: bool
    open: Callable[[], IO[bytes]]


def write(target: BinaryIO, entries: Iterable[Entry], moment: datetime) -> None:
    """Write the canonical zip file of these entries; `moment` is the time that all of them get, in UTC."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for entry in sorted(entries, key=lambda item: item.name):
            info = zipfile.ZipInfo(entry.name, moment.astimezone(UTC).timetuple()[:6])
            info.create_system = UNIX
            info.external_attr = (stat.S_IFREG | (0o755 if entry.executable else 0o644)) << 16
            info.file_size = entry.size
            with entry.open() as source, archive.open(info, "w") as destination:
                shutil.copyfileobj(source, destination, CHUNK)


def unsafe(name: str) -> str:
    """Why a name is unsafe (it leads out of the folder, or means another file on another system); empty if it is safe."""
    path = PurePosixPath(name)
    if path.is_absolute() or name != path.as_posix() or {".", ".."} & set(path.parts):
        return "leads out of the archive"
    if not name.isprintable() or not name.isascii() or set(name) & set('\\:*?"<>|'):
        return "holds a character that some systems do not allow"
    if ".git" in path.parts:
        return "would be git's own file"
    return ""


def difference(left: BinaryIO, right: BinaryIO) -> int | None:
    """The offset of the first byte at which two files differ, or None."""
    offset = 0
    while True:
        left_chunk, right_chunk = left.read(CHUNK), right.read(CHUNK)
        if left_chunk != right_chunk:
            shared = min(len(left_chunk), len(right_chunk))
            return offset + next((index for index in range(shared) if left_chunk[index] != right_chunk[index]), shared)
        if not left_chunk:
            return None
        offset += len(left_chunk)
