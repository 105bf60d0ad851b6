"""A corpus as it arrives: named files, from a folder or from an archive, in a fixed order and never all in memory."""

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mi_llm import storage
from mi_llm.problem import Problem

LARGEST = 256 * 1024 * 1024  # bytes; no file of any known corpus comes near, a decompression bomb does
LARGEST_ARCHIVE = 8 * LARGEST  # bytes of all files together
LARGEST_HEADER = 64 * 1024  # bytes of a long name or of PAX attributes, which tarfile reads whole
MOST_FILES = 200_000  # the largest known corpus has 55,165
LONGEST_NAME, DEEPEST_NAME = 1000, 50  # characters, folders
HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True)
class File:
    """One file of a corpus: its name inside the corpus, and its bytes."""

    name: str
    content: bytes

    def text(self) -> str:
        """The content as text, or a Problem that names the file and the first byte that is not UTF-8."""
        return storage.decode(self.content, self.name)


class Header(tarfile.TarInfo):
    """A header of an archive; one that would fill the memory before its file is seen is refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """Read one header block."""
        header = super().frombuf(buf, encoding, errors)
        if (header.type in HEADERS and header.size > LARGEST_HEADER) or header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.TarError(f"a header of {header.size} bytes and type {header.type!r}")
        return header

    def _proc_gnusparse_10(self, *_: object) -> None:
        """Called by tarfile for a file with holes, whose list of holes, of any length, lies in the file itself."""
        raise tarfile.TarError("a file with holes")


def checked_name(name: str, where: str) -> str:
    """A file's name; raises Problem if it is not UTF-8, has control characters, or is too long or too deep for a corpus."""
    depth = name.count("/")
    found = f"a name of {len(name)} characters, {depth} folders deep"
    if len(name) <= LONGEST_NAME and depth <= DEEPEST_NAME:
        if not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name):
            return name
        found = f"the name {ascii(name)[:100]}"
    expected = f"names in UTF-8, without control characters, of at most {LONGEST_NAME} characters and {DEEPEST_NAME} folders"
    raise Problem(where, found, expected, "give the file another name, or fetch the archive again")


def natural(name: str) -> tuple[object, ...]:
    """Sort key under which `case_2` comes before `case_10`."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def from_folder(folder: Path) -> Iterator[File]:
    """Yield the files below a folder in natural order. Links are refused: a corpus is files."""
    if not folder.is_dir():
        raise Problem(str(folder), "no such folder", "the corpus's files", "run `dvc pull data.dvc`")
    for path in sorted(folder.rglob("*"), key=lambda item: natural(item.relative_to(folder).as_posix())):
        if path.is_symlink():
            raise Problem(str(path), "a link", "a plain file", "replace it with the file it points to")
        if path.is_file():
            yield File(checked_name(path.relative_to(folder).as_posix(), str(folder)), path.read_bytes())


def from_archive(path: Path) -> Iterator[File]:
    """Yield the files of a `.tar` or `.tar.gz` in its order; refuse names that leave it, links and bombs."""
    total = 0
    try:
        with tarfile.open(path, "r|*", tarinfo=Header) as archive:
            for number, member in enumerate(archive, 1):
                archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every header
                if number > MOST_FILES or archive.offset > 2 * LARGEST_ARCHIVE:
                    found = f"over {number - 1} entries, {archive.offset} bytes"
                    raise Problem(str(path), found, f"at most {MOST_FILES} files", "fetch the archive again")
                where = f"{path}: {checked_name(member.name, str(path))}"
                if member.isdir():
                    continue
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise Problem(where, "a name that leads out of the archive", "names inside it", "fetch the archive again")
                if not member.isfile():
                    raise Problem(where, "a link or device", "a plain file", "fetch the archive again")
                total += member.size
                if member.size > LARGEST or total > LARGEST_ARCHIVE:
                    limits = f"at most {LARGEST} a file and {LARGEST_ARCHIVE} in all"
                    raise Problem(where, f"{member.size} bytes, {total} with those before it", limits, "fetch the archive again")
                opened = archive.extractfile(member)
                assert opened is not None
                content = opened.read()
                if len(content) != member.size:
                    raise EOFError(f"{member.name} ends early")
                yield File(name.as_posix(), content)
    except (tarfile.TarError, EOFError, zlib.error, ValueError, TypeError, OSError, RecursionError) as error:
        # TypeError is what tarfile raises for a gzip header that ends early.
        if isinstance(error, FileNotFoundError):
            raise Problem(str(path), "no such archive", "the corpus", "run `mi-llm acquire`") from None
        raise Problem(str(path), f"a damaged archive ({error})", "a complete archive", "delete it and run again") from error


def office(file: File) -> io.BytesIO:
    """The bytes of a Word or Excel file, after checking that it is a zip archive whose unpacked size is sensible."""
    content = io.BytesIO(file.content)
    try:
        with zipfile.ZipFile(content) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            packed = sum(entry.compress_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise Problem(file.name, f"a damaged Office file ({error})", "a complete one", "restore it from its source") from None
    if size > LARGEST or size > 200 * packed + (1 << 20):
        raise Problem(
            file.name, f"{size} bytes packed into {packed}", "an Office file of a sensible size", "restore it from its source"
        )
    content.seek(0)
    return content


def write_archive(path: Path, files: Iterable[File]) -> None:
    """Write a `.tar` whose bytes depend on the files' names and contents only (so it is not compressed)."""
    with (
        storage.replacing(path) as raw,
        tarfile.open(fileobj=raw, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in files:
            member = tarfile.TarInfo(file.name)
            member.size = len(file.content)
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(file.content))
