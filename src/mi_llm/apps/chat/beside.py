"""What the chat puts under a model's reply, or in its place, besides the fixed answers of `in_front.py`: for stage `safety`."""

from collections.abc import Sequence

from mi_llm.apps.chat import guard, help
from mi_llm.apps.chat.words import WORDS


def under(messages: Sequence[str]) -> str | None:
    """The Chinese text under a reply to the last of a client's messages: help lines where danger is possible, else None."""
    danger = guard.look(messages)
    if danger.tier != "possible":
        return None
    near, _ = help.bundled().near("zh")
    lines = [line for region in near for line in region.lines if line.call and danger.categories[0] in line.dangers]
    return "\n".join([WORDS["possible"].zh, "；".join(f"{line.name.zh} {line.call}" for line in lines)])


def instead(reply: str) -> str | None:
    """The Chinese note in place of a reply that must not be shown; None for any other."""
    fault = guard.fault(reply)
    return None if fault is None else WORDS[f"withheld_{fault}"].zh
