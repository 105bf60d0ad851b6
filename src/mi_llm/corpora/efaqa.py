"""Emotional First Aid (efaqa-corpus-zh, bought license): gzipped or plain JSON Lines of posts with their chats."""

import zlib
from collections.abc import Iterable, Iterator

from mi_llm.corpora.files import LARGEST, File
from mi_llm.corpora.reading import Repairs, assemble, parse_lines, require
from mi_llm.dialog import Dialog
from mi_llm.problem import Problem

NAME = "Emotional First Aid"


def unpacked(file: File) -> File:
    """The file itself, or its unpacked content if it is a `.gz`; raises Problem if that is damaged or beyond `LARGEST`."""
    if not file.name.endswith(".gz"):
        return file
    try:
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
        content = inflater.decompress(file.content, LARGEST)
    except zlib.error as error:
        raise Problem(file.name, f"a damaged gzip file ({error})", "a complete one", "fetch it again") from None
    require(inflater.eof, file.name, "a truncated or oversized gzip file", f"at most {LARGEST} bytes, complete")
    return File(file.name.removesuffix(".gz"), content)


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield one dialog per post: its title is the client's first volley, then the chat between `owner` and `audience`.

    Messages of one sender in a row become one volley.
    """
    for packed in files:
        if not packed.name.endswith((".utf8", ".utf8.gz", ".jsonl")):
            continue
        for number, where, post in parse_lines(unpacked(packed), "a post"):
            require(isinstance(post.get("chats"), list), where, "no list `chats`", "a post")
            volleys = [("owner", post.get("title"), f"{where}, title")]
            for chat_number, chat in enumerate(post["chats"], 1):
                require(isinstance(chat, dict), f"{where}, chat {chat_number}", repr(chat)[:40], "{sender, value}")
                volleys.append((chat.get("sender"), chat.get("value"), f"{where}, chat {chat_number}"))
            meta = {"file": packed.name, "line": number, "label": post.get("label")}
            yield assemble(str(post.get("md5", number)), "efaqa", volleys, repairs, meta)
