"""The one kind of error a user can cause, and therefore sees: a sentence, never a traceback."""

import re

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # what terminals obey


def printable(text: str) -> str:
    """A text that a terminal shows and does not obey: control characters and marks of direction as their escapes."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Problem(Exception):  # noqa: N818 — what the reader has is a problem
    """Something outside the program is not as it must be.

    `where` is a file, a place in it, or an address; `found` what is there; `expected` what the study needs;
    `remedy` what the reader can do about it.
    """

    def __init__(self, where: str, found: str, expected: str, remedy: str) -> None:
        self.where, self.found, self.expected, self.remedy = where, found, expected, remedy
        super().__init__(printable(f"{where}: {found}\n  expected: {expected}\n  what to do: {remedy}"))
