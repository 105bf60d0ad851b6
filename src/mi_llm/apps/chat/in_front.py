"""The chat's guard in front of a model that is not in the chat: what stage `safety` is told of it, in one place."""

from collections.abc import Sequence

from mi_llm.apps.chat import guard, help
from mi_llm.apps.web import Tongue


def answer(messages: Sequence[str], language: str) -> str | None:
    """The text that stands in place of a reply to the last of a client's messages.

    None where the model replies: no danger, or only possible danger, under which the chat shows help lines. In Chinese, else
    in English: the fixed texts exist in these two.
    """
    *_, danger = guard.dangers(messages)
    if danger.tier != "plain":
        return None
    fixed = help.bundled().answers[danger.categories[0]]
    tongue = tongue_of(language)
    return "\n".join([getattr(fixed.title, tongue), *getattr(fixed.text, tongue), lines(danger.categories[0], tongue)])


def lines(danger: guard.Category, tongue: Tongue) -> str:
    """The help lines near a person of this language for one danger, in one line."""
    near, _ = help.bundled().near(tongue)
    known = [line for region in near for line in region.lines if line.call and danger in line.dangers]
    return {"zh": "；", "en": "; "}[tongue].join(f"{getattr(line.name, tongue)} {line.call}" for line in known)


def tongue_of(language: str) -> Tongue:
    """The language of the chat's fixed texts in which a client of a study in this language is answered."""
    return "zh" if language == "zh" else "en"
