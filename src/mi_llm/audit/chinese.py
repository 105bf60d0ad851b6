"""The audit's notes, places and table contents in Chinese: `notes_zh.yaml`, sentence by sentence.

The methods write their notes in English, into `claims.csv`. A note is a row of sentences; each is one of the file's, with numbers,
names and lists in its gaps. A note of which a sentence is not in the file stays English, and the page says so.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources

from mi_llm import storage
from mi_llm.codebook import coding

GAP = re.compile(r"\{(\w+)\}")
LATIN = re.compile("[A-Za-z]")
LISTED = re.compile(r", | and ")


@cache
def content() -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """`notes_zh.yaml`: names, with the codebook's; and sentences as patterns with their translation."""
    file = storage.read_yaml(resources.files(__package__) / "notes_zh.yaml")
    codes = (*coding.GLOBALS, *coding.BEHAVIORS, coding.REFLECTIONS, coding.TECHNICAL, coding.RELATIONAL)
    names = {entry.name.en: entry.name.zh for entry in codes} | file["names"]
    return names, [(pattern_of(english), translation) for english, translation in file["sentences"].items()]


def pattern_of(sentence: str) -> re.Pattern[str]:
    """A sentence as a pattern: a gap takes any text, to the note's end where the sentence ends with it.

    A gap whose name begins with `token` takes text without spaces.
    """
    parts = GAP.split(sentence)
    gaps = [rf"(?P<{name}>\S+?)" if name.startswith("token") else rf"(?P<{name}>.+?)" for name in parts[1::2]]
    texts = [re.escape(text) for text in parts[::2]]
    end = r"(?= |$)" if texts[-1] else "$"
    return re.compile("".join(text + gap for text, gap in zip(texts, [*gaps, ""], strict=True)) + end, re.DOTALL)


def chinese(text: str) -> str:
    """A name or a note in Chinese, read so that the least of it stays English; unchanged where there is no translation."""
    names, _ = content()
    if text in names or not text:
        return names.get(text, text)
    return min(readings(text), key=lambda reading: len(LATIN.findall(reading)), default=text)


def readings(note: str) -> Iterator[str]:
    """The ways to read a note as a row of known sentences, each as its translation."""
    if not note:
        yield ""
    for pattern, translation in content()[1]:
        if match := pattern.match(note):
            gaps = {name: filled(name, value) for name, value in match.groupdict().items()}
            for rest in readings(note[match.end() :].lstrip(" ")):
                yield translation.format(**gaps) + rest


def filled(gap: str, value: str) -> str:
    """What stands in a gap: a name translated, a list item by item, anything else as it is."""
    names, _ = content()
    if gap.startswith("list"):
        return "、".join(names.get(item, item) for item in LISTED.split(value))
    return names.get(value, value)
