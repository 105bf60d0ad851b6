"""Emotional First Aid (efaqa-corpus-zh, bought license): gzipped or plain JSON Lines of posts with their chats."""

import zlib
from collections.abc import Iterable, Iterator

from mi_llm.corpora.files import LARGEST, File
from mi_llm.corpora.labels import role_of
from mi_llm.corpora.reading import Repairs, assemble, parse_lines, require
from mi_llm.dialog import Dialog
from mi_llm.language.language import Text
from mi_llm.problem import Problem

NAME = Text("Emotional First Aid", "Emotional First Aid")
TEXT = "textMessage"  # the type of a chat message that is text; the others hold no words


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
    """Yield one dialog per post that got a reply: title and description are the client's first volley, then the chat follows.

    The chat is between `owner` and `audience`. Messages of one sender in a row become one volley; what is no text is left out.
    """
    for packed in files:
        if not packed.name.endswith((".utf8", ".utf8.gz", ".jsonl")):
            continue
        for number, where, post in parse_lines(unpacked(packed), "a post"):
            require(isinstance(post.get("chats"), list), where, "no list `chats`", "a post")
            volleys = [("owner", post.get("title"), f"{where}, title")]
            if post.get("description"):
                volleys.append(("owner", post["description"], f"{where}, description"))
            for chat_number, chat in enumerate(post["chats"], 1):
                chat_where = f"{where}, chat {chat_number}"
                require(isinstance(chat, dict), chat_where, repr(chat)[:40], "{sender, value}")
                if chat.get("type", TEXT) == TEXT:
                    volleys.append((chat.get("sender"), chat.get("value"), chat_where))
                else:
                    repairs.note("message that is no text left out", chat_where)
            if not any(role_of(sender) == "counselor" and value for sender, value, _ in volleys):
                repairs.note("post without a reply left out", where)
                continue
            meta = {"file": packed.name, "line": number, "label": post.get("label")}
            yield from assemble(str(post.get("md5", number)), "efaqa", volleys, repairs, meta)
