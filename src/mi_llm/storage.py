"""How the bundle reads and writes files: written whole or not at all, with the same bytes for the same content."""

import csv
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ruamel.yaml import YAML, YAMLError

from mi_llm.problem import Problem

if TYPE_CHECKING:
    import pandas as pd

LARGEST_YAML = 10_000_000  # characters; the largest lock has some 100,000
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
NUMBERS = re.compile(r"(?:(?:^|[,;]? +)[+-]?[\d.]+(?:[eE][+-]?\d+)?%?)+")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbor of `path`; on success fsync it and rename it over `path`, else leave `path` alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise unwritable(path, error) from error
        raise


def unwritable(path: Path, error: OSError) -> Problem:
    """The problem of a file that could not be written."""
    return Problem(
        str(path),
        f"could not be written ({os.strerror(error.errno or 0)}); the previous file is unchanged",
        "a writable folder with free space",
        "free some space or fix the permissions (`mi-llm doctor` shows both), then run the same command again",
    )


def unshare(path: Path) -> None:
    """Replace a link by a copy of its content before lines are added to it: the content it shares with DVC's cache must stay."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of two processes that come at once, the second finds it done
        if path.exists() and (path.is_symlink() or path.stat().st_nlink > 1):
            with path.open("rb") as shared, replacing(path) as own:
                shutil.copyfileobj(shared, own)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with `\\n` line ends, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def dump(value: Any) -> str:
    """The canonical JSON line of `value`: sorted keys, fixed separators, Chinese characters not escaped."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write an indented, key-sorted JSON file."""
    write_text(path, json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, indent=2) + "\n")


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write JSON Lines, one canonical line per record."""
    with replacing(path) as file:
        for record in records:
            file.write(dump(record).encode("utf-8") + b"\n")


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Write a table as CSV, without its index."""
    write_text(path, table_text(frame, index=False))


def table_text(frame: "pd.DataFrame", *, index: bool) -> str:
    """A table as CSV, in which no text is a formula."""
    safe = frame.rename(index=no_formula, columns=no_formula)
    for column in range(safe.shape[1]):
        cells = safe.iloc[:, column]
        if any(isinstance(cell, str) and no_formula(cell) != cell for cell in cells):
            safe.isetitem(column, [no_formula(cell) for cell in cells])
    return str(safe.to_csv(index=index, lineterminator="\n"))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV below a line with the columns' names, in which no text is a formula."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([map(no_formula, row) for row in (columns, *rows)])
    return text.getvalue()


def no_formula(cell: Any) -> Any:
    """A cell that a spreadsheet shows and does not compute: an apostrophe stands before a text that begins like a formula."""
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) and not NUMBERS.fullmatch(cell) else cell


def read_json(path: Path) -> Any:
    """Read a JSON file; raises Problem with the line that is wrong."""
    return parse_json(read_text(path), path, "a JSON document")


def parse_json(text: str, path: Path, expected: str, line: int = 1) -> Any:
    """What a JSON text holds that begins at this line; raises Problem if it is none, too deep, or holds too long a number."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found, line = f"not JSON ({error.msg})", line + error.lineno - 1
    except RecursionError:
        found = "nested too deeply"
    except ValueError:
        found = "a number of more digits than can be read"
    raise Problem(f"{path}, line {line}", found, expected, "restore or repair the file")


def read_yaml(path: Path | Traversable) -> Any:
    """Read a YAML file, or one of the package; raises Problem with the line that is wrong."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text holds; raises Problem if it is not YAML, nested too deeply, or vast once its aliases are written out."""
    try:
        content = YAML(typ="safe").load(text)
        if written_size(content, {}) <= LARGEST_YAML:
            return content
        found = f"over {LARGEST_YAML:,} characters once its aliases are written out"
    except (YAMLError, ValueError) as error:
        found = f"not YAML: {' '.join(str(error).split())}"
    except RecursionError:
        found = "nested too deeply"
    raise Problem(where, found, "a YAML document", "restore or repair the file")


def editable_yaml(text: str) -> Any:
    """What a YAML text holds, with its comments and the form of its lines, to be changed and dumped again."""
    return round_trip().load(text)


def dump_yaml(content: Any) -> str:
    """Content as YAML; what was `editable_yaml` has its comments."""
    text = io.StringIO()
    round_trip().dump(content, text)
    return text.getvalue()


def round_trip() -> YAML:
    """A YAML reader and writer that keeps comments and the form of lines."""
    form = YAML()
    form.width, form.preserve_quotes = 4096, True
    return form


def written_size(value: Any, sizes: dict[int, int]) -> int:
    """About how many characters a value has, what aliases share counted each time; `sizes` holds what is known by identity."""
    if not isinstance(value, dict | list):
        return value.bit_length() if isinstance(value, int) else len(str(value))
    if id(value) not in sizes:
        sizes[id(value)] = LARGEST_YAML + 1  # until it is known: for what holds itself
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        sizes[id(value)] = 2 + sum(written_size(part, sizes) for part in parts)
    return sizes[id(value)]


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the records of a JSON Lines file; raises Problem with the line that is wrong."""
    lines = read_text(path).split("\n")  # only there: splitlines would also cut at U+2028 and U+0085 in a text
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        yield parse_json(line, path, "one JSON object per line", number)


def read_text(path: Path | Traversable) -> str:
    """Read a UTF-8 file; raises Problem if it is missing, unreadable or not UTF-8."""
    try:
        return decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise Problem(
            str(path),
            "no such file",
            "the output of an earlier stage or a file of the bundle",
            "run ./reproduce.sh, or `dvc pull`",
        ) from None
    except OSError as error:
        raise Problem(
            str(path), f"could not be read ({os.strerror(error.errno or 0)})", "a file", "correct its name, or its permissions"
        ) from None


def decode(content: bytes, where: str) -> str:
    """Decode UTF-8 without a leading byte order mark; raises Problem with the first bad byte."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(
            f"{where}, byte {error.start}",
            f"not UTF-8 (byte 0x{content[error.start]:02x})",
            "text encoded as UTF-8",
            "convert the file, for instance: iconv -f GB18030 -t UTF-8",
        ) from None


def wait_alone(descriptor: int, doing: str) -> None:
    """Lock an open file or folder, waiting for a process that holds the lock. The kernel releases it when the file is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another process {doing}; waiting for it to end", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def blob_id(content: bytes) -> str:
    """The git blob id: SHA-1 over `blob <size>`, a zero byte and the content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def md5(path: Path) -> str:
    """MD5 of a file, as DVC has it."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5s(folder: Path) -> dict[str, str]:
    """The MD5 of each file in a folder, by its path below it."""
    return {path.relative_to(folder).as_posix(): md5(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of a folder: over the sorted relative names and contents of the files in it."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
