"""The chat's guard in front of a model that is not in the chat: what stage `safety` is told of it, in one place."""

from collections.abc import Sequence

from mi_llm.apps.chat import guard, help


def answer(messages: Sequence[str]) -> str | None:
    """The Chinese text that stands in place of a reply to the last of a client's messages.

    None where the model replies: no danger, or only possible danger, under which the chat shows help lines.
    """
    danger = guard.look(messages)
    if danger.tier != "plain":
        return None
    known, gravest = help.bundled(), danger.categories[0]
    near, _ = known.near("zh")
    lines = [line for region in near for line in region.lines if line.call and gravest in line.dangers]
    numbers = [f"{line.name.zh} {line.call}" for line in lines]
    return "\n".join([known.answers[gravest].title.zh, *known.answers[gravest].text.zh, "；".join(numbers)])
