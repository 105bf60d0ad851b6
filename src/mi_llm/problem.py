"""The one kind of error a user can cause, and therefore sees: a sentence, never a traceback."""


class Problem(Exception):  # noqa: N818 — what the reader has is a problem
    """Something outside the program is not as it must be.

    `where` is a file, a place in it, or an address; `found` what is there; `expected` what the study needs;
    `remedy` what the reader can do about it.
    """

    def __init__(self, where: str, found: str, expected: str, remedy: str) -> None:
        self.where, self.found, self.expected, self.remedy = where, found, expected, remedy
        super().__init__(f"{where}: {found}\n  expected: {expected}\n  what to do: {remedy}")
