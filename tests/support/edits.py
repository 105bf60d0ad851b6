"""Edits of text files by tests: each must take, so that no test passes on a file that it did not change."""

from collections.abc import Mapping
from pathlib import Path


def edited(text: str, changes: Mapping[str, str]) -> str:
    """The text with each old string replaced by its new one, in order; every old string must be there."""
    for old, new in changes.items():
        assert old in text, f"not in the text: {old!r}"
        text = text.replace(old, new)
    return text


def edit(path: Path, changes: Mapping[str, str]) -> None:
    """Replace strings in a UTF-8 file; every old string must be there."""
    path.write_text(edited(path.read_text(encoding="utf-8"), changes), encoding="utf-8")
