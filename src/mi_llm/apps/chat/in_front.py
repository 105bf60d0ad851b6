"""The chat's guard in front of a model that is not in the chat: what stage `safety` is told of it, in one place."""

from collections.abc import Sequence

from mi_llm.apps.chat import guard, help
from mi_llm.apps.web import Tongue


def answer(messages: Sequence[str], language: str) -> str | None:
    """What stands in place of a reply to the last of a client's messages; None where the model replies.

    In Chinese, else in English: the fixed texts exist in these two.
    """
    *_, danger = guard.dangers(messages)
    if danger.tier != "plain":  # a weaker sign is answered by the model, with help beside its reply
        return None
    known, gravest = help.bundled(), danger.categories[0]
    fixed = known.answers[gravest]
    tongue: Tongue = "zh" if language == "zh" else "en"
    near, _ = known.near(tongue)
    lines = [line for region in near for line in region.lines if line.call and gravest in line.dangers]
    numbers = [f"{getattr(line.name, tongue)} {line.call}" for line in lines]
    between = {"zh": "；", "en": "; "}[tongue]
    return "\n".join([getattr(fixed.title, tongue), *getattr(fixed.text, tongue), between.join(numbers)])
