"""A talk as plain text, to read and to print: what it is, who said what, and the MI codes of complete replies."""

from collections.abc import Mapping

from mi_llm.apps.chat.talks import Talk
from mi_llm.apps.web import Tongue
from mi_llm.codebook.coding import BEHAVIORS, Text


def transcript(talk: Talk, notice: Text, words: Mapping[str, Text], tongue: Tongue) -> str:
    """The text of a talk in the page's language; rounds that the guard answered are named, without what was said."""

    def say(text: Text) -> str:
        return str(getattr(text, tongue))

    names = {entry.code: say(entry.name) for entry in BEHAVIORS}
    way = words[f"way_{talk.way}"] if len(talk.sides) == 2 else words[talk.sides[0]]
    lines = [f"{talk.model}, {say(way)}", f"{say(words['not_care'])} {say(words['not_a_person'])}", say(notice), ""]
    for round_ in talk.rounds:
        if round_.dangers:
            lines += [f"{say(words['you'])}: [{say(words['guarded'])}]", ""]
            continue
        lines += [f"{say(words['you'])}: {round_.client}", ""]
        for arm, reply in zip(talk.sides, round_.replies, strict=False):
            name = words[arm] if len(talk.sides) == 2 else words["counselor"]
            lines.append(f"{say(name)}: {reply.text or '–'}")
            if reply.finish != "stop":
                key = f"{reply.finish}_{reply.why}" if reply.why else reply.finish
                lines.append(f"    [{say(words[key])}]")
            elif reply.codes:
                lines.append(f"    [{', '.join(names[code] for code in reply.codes)}]")
            lines.append("")
    if any(reply.codes for round_ in talk.rounds for reply in round_.replies):
        lines += [say(words["codes_in_text"]), ""]
    return "\n".join(lines)
