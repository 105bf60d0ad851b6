"""The zip file of the archive in its one canonical form: what is in it decides every byte of it.

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
            with entry.open() as source, archive.open(info, "w") as place:
                shutil.copyfileobj(source, place, CHUNK)


def unsafe(name: str) -> str:
    """What is wrong with a name: it would lead out of the folder, or mean another file on another system; empty if nothing is."""
    path = PurePosixPath(name)
    if path.is_absolute() or name != path.as_posix() or {".", ".."} & set(path.parts):
        return "leads out of the archive"
    if not name.isprintable() or not name.isascii() or set(name) & set('\\:*?"<>|'):
        return "holds a character that some systems do not allow"
    if ".git" in path.parts:
        return "would be git's own file"
    return ""


def difference(left: BinaryIO, right: BinaryIO) -> int | None:
    """The first byte at which two files differ, or None."""
    place = 0
    while True:
        one, other = left.read(CHUNK), right.read(CHUNK)
        if one != other:
            shared = min(len(one), len(other))
            return place + next((index for index in range(shared) if one[index] != other[index]), shared)
        if not one:
            return None
        place += len(one)
