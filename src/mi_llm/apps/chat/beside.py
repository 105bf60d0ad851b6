"""What the chat puts under a model's reply, or in its place, besides the fixed answers of `in_front.py`: for stage `safety`."""

from collections.abc import Sequence

from mi_llm.apps.chat import guard
from mi_llm.apps.chat.in_front import lines, tongue_of
from mi_llm.apps.chat.talk_texts import WORDS


def under(messages: Sequence[str], language: str) -> str | None:
    """The text under a reply to the last of a client's messages: help lines where danger is possible, else None."""
    *_, danger = guard.dangers(messages)
    if danger.tier != "possible":
        return None
    tongue = tongue_of(language)
    return "\n".join([getattr(WORDS["possible"], tongue), lines(danger.categories[0], tongue)])


def instead(reply: str, language: str) -> str | None:
    """The note in place of a reply that must not be shown; None for any other."""
    fault = guard.fault(reply)
    return None if fault is None else str(getattr(WORDS[f"withheld_{fault}"], tongue_of(language)))
