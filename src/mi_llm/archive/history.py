"""What git knows: the commit that is archived, its files, and its whole history as one bundle.

`git bundle` packs as the repository happens to be packed, so two clones give two files. The bundle here holds every object
in order of its id, whole and uncompressed: an equal commit gives equal bytes, whatever git, zlib or machine wrote it.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mi_llm.git import git
from mi_llm.problem import Problem

BRANCH = "main"
KINDS = {b"commit": 1, b"tree": 2, b"blob": 3, b"tag": 4}  # gitformat-pack(5)
BLOCK = 65535  # bytes that a stored deflate block holds at most (RFC 1951)


@dataclass(frozen=True)
class Tracked:
    """A file of a commit: its path, its git blob id, whether it is a program."""

    path: str
    blob: str
    executable: bool


def head() -> tuple[str, datetime]:
    """The commit that is checked out, and its time; raises Problem if the files are not those of that commit.

    The lock at the root may differ: the audit writes it, and the archive takes its committed version.
    """
    changed = git("status", "--porcelain", "--", ".", ":(exclude,top)dvc.lock").decode("utf-8").splitlines()
    if changed:
        raise Problem(
            f"{changed[0][3:]}" + (f" and {len(changed) - 1} more" if len(changed) > 1 else ""),
            "changed since the last commit",
            "a folder without uncommitted changes: the archive holds a commit",
            "commit it, or stash it (git stash --include-untracked)",
        )
    if git("rev-parse", "--is-shallow-repository").strip() == b"true":
        raise Problem("git", "a shallow clone", "the whole history: the archive keeps it", "git fetch --unshallow")
    commit, seconds = git("show", "--no-patch", "--format=%H %ct", "HEAD").decode("ascii").split()
    return commit, datetime.fromtimestamp(int(seconds), UTC)


def files(commit: str, folder: Path | None = None) -> list[Tracked]:
    """The files of a commit, by path; raises Problem at a link or a nested repository."""
    tracked = []
    for line in git("ls-tree", "-r", "-z", commit, folder=folder).decode("utf-8").split("\0")[:-1]:
        facts, path = line.split("\t")
        mode, _, blob = facts.split()
        if mode not in ("100644", "100755"):
            raise Problem(path, f"git mode {mode}", "a plain file", "replace the link with the file")
        tracked.append(Tracked(path, blob, mode == "100755"))
    return tracked


def contents(ids: list[str]) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of git objects, in the order of their ids."""
    output = memoryview(git("cat-file", "--batch", stdin="".join(f"{name}\n" for name in ids).encode("ascii")))
    offset = 0
    for _ in ids:
        end = bytes(output[offset : offset + 200]).index(b"\n") + offset
        _, kind, size = bytes(output[offset:end]).split()
        offset = end + 1 + int(size)
        yield kind, bytes(output[end + 1 : offset])
        offset += 1  # the line end after the content


def stored(content: bytes) -> bytes:
    """A zlib stream that holds `content` as it is (RFC 1950, 1951: stored blocks)."""
    blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)] or [b""]
    body = b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block for block in blocks
    )  # fmt: skip
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(content))


def entry_head(kind: bytes, size: int) -> bytes:
    """Type and length of a packed object: 4 bits of the length, then 7 per byte (gitformat-pack(5))."""
    byte, size = KINDS[kind] << 4 | size & 15, size >> 4
    head = bytearray()
    while size:
        head.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    head.append(byte)
    return bytes(head)


def bundle(commit: str) -> bytes:
    """The git bundle (version 2) of a commit and all that came before it, as branch `main`."""
    ids = sorted({line.split()[0] for line in git("rev-list", "--objects", commit).decode("utf-8").splitlines()})
    pack = bytearray(struct.pack(">4sII", b"PACK", 2, len(ids)))
    for kind, content in contents(ids):
        pack += entry_head(kind, len(content)) + stored(content)
    pack += hashlib.sha1(pack, usedforsecurity=False).digest()
    return f"# v2 git bundle\n{commit} refs/heads/{BRANCH}\n{commit} HEAD\n\n".encode("ascii") + bytes(pack)
