"""Who speaks: the labels by which dialogs name client and counselor, on a line of text or inside a volley."""

import re

from mi_llm.dialog import Role
from mi_llm.language import language

ROLES: dict[str, Role] = {
    **dict.fromkeys((label for known in language.every() for label in known.labels.client), "client"),
    **dict.fromkeys((label for known in language.every() for label in known.labels.counselor), "counselor"),
}
QUALIFIED = r"(?P<qualified>（[^（）]*）|\([^()]*\)|\d+)?\s*(?P<colon>[：:])"  # as in 来访者（姚先生）：
LABEL = re.compile(rf"(?<![a-z])(?P<name>{'|'.join(sorted(ROLES, key=len, reverse=True))}){QUALIFIED}\s*", re.IGNORECASE)
UNKNOWN = re.compile(rf"(?P<name>[^\W\d_][\w·. ]{{0,7}})(?<![说道问答讲想]){QUALIFIED}(?!//|\d)")
BOUNDARY = re.compile(r"(?:[。！？…~～.!?][”\"』」’')）】*]*\s*|\n\s*)$")


def role_of(label: object) -> Role | None:
    """Whom a label names, in small or capital letters; None for an unknown one."""
    return ROLES.get(label.lower()) if isinstance(label, str) else None


def unknown_label(line: str) -> str | None:
    """The name before the colon with which a line opens as if a third person spoke; `医生说：“…”` and `晚上10:30` are speech."""
    match = None if LABEL.match(line) else UNKNOWN.match(line)
    return match["name"] if match else None


def split_volley(role: Role, text: str) -> list[tuple[Role, str]] | None:
    """Cut a volley at the labels inside it; None where they leave open who speaks.

    A label counts at the volley's beginning, if it names the speaker, and behind the end of a sentence or line. Elsewhere
    (`告诉来访者：…`, `（咨询师：…）`, right behind another, at the beginning for the other role) it may be a slip or speech.
    """
    if "：" not in text and ":" not in text:  # most volleys; the search would take as long as all other reading
        return [(role, text)]
    volleys: list[tuple[Role, str]] = []
    speaker, start = role, 0
    for label in LABEL.finditer(text):
        before, named = text[start : label.start()], ROLES[label["name"].lower()]
        if before.strip():
            if not BOUNDARY.search(before):
                return None
            volleys.append((speaker, before.strip()))
        elif start or named != role:
            return None
        speaker, start = named, label.end()
    return [*volleys, (speaker, text[start:].strip())]
