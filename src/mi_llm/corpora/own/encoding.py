"""The encoding of a text: a byte order mark says it, else UTF-8 if it fits, else what charset-normalizer finds likely."""

import codecs

from charset_normalizer import from_bytes

from mi_llm.problem import Problem

MARKS = {  # the longer ones first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LIKELY = ["gb18030", "big5", "utf_16_le", "utf_16_be", "cp1252"]  # what Chinese and English transcripts come in
NAMES = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-32": "UTF-32", "utf_16_le": "UTF-16", "utf_16_be": "UTF-16"}


def decoded(content: bytes, name: str) -> tuple[str, str, bool]:
    """A file's text, the name of its encoding, and whether a byte order mark was removed; raises Problem for what is no text."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding), NAMES[encoding], True
            except UnicodeDecodeError as error:
                raise no_text(name, f"not {NAMES[encoding]}, though its first bytes say so (byte {error.start})") from None
    try:
        text, encoding = content.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError as error:
        best = from_bytes(content, cp_isolation=LIKELY).best()
        if best is None:
            found = f"not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}), nor any encoding of Chinese or English text"
            raise no_text(name, found) from None
        text, encoding = content.decode(best.encoding), NAMES.get(best.encoding, best.encoding.upper())
    if "\0" in text:
        best = from_bytes(content, cp_isolation=["utf_16_le", "utf_16_be"]).best()
        if best is None:
            raise no_text(name, "a file of bytes, not of text")
        text, encoding = content.decode(best.encoding), NAMES[best.encoding]
    return text, encoding, False


def no_text(name: str, found: str) -> Problem:
    """The problem of a file that cannot be decoded."""
    return Problem(name, found, "a text in UTF-8, UTF-16, GB18030, or Big5", "save it as UTF-8, or move it to another folder")
