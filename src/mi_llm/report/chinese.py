"""The tables' headings and names in Chinese: `chinese.yaml`, and the names of codes, verdicts, corpora, scores and languages.

Names that belong to a study (its models, its corpora, file names) stay as they are; so do numbers.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib import resources

from mi_llm import storage
from mi_llm.audit import verdict
from mi_llm.language import language
from mi_llm.registry import CORPORA, modules
from mi_llm.report import manual, safety
from mi_llm.score.metrics import FAMILIES


@cache
def words() -> tuple[dict[str, str], dict[re.Pattern[str], str]]:
    """English to Chinese: whole texts, and patterns whose groups are translated too."""
    content = storage.read_yaml(resources.files(__package__) / "chinese.yaml")
    corpora = {module.NAME.en: module.NAME.zh for module in modules(CORPORA).values()}
    scores = {title.en: title.zh for family in FAMILIES for title in family.names.values()}
    languages: dict[str, str] = {}
    for en, zh in ((known.name.en, known.name.zh) for known in language.every()):
        languages |= {en: zh, f"{en}, translated": f"{zh}（译文）", f"AnnoMI in {en}": f"AnnoMI 的{zh}译文"}
        languages[f"AnnoMI transcripts translated into {en}"] = f"译成{zh}的 AnnoMI 文本"
    patterns = {re.compile(pattern): into for pattern, into in content["patterns"].items()}
    names = manual.CHINESE | safety.CHINESE | verdict.CHINESE | corpora | scores | languages
    return names | content["names"], patterns


def chinese(text: str) -> str:
    """A heading or a name in Chinese; unchanged where there is no translation."""
    names, patterns = words()
    if text in names:
        return names[text]
    for pattern, translation in patterns.items():
        if match := pattern.fullmatch(text):
            return translation.format(*map(chinese, match.groups()))
    return text


def translator(lang: str) -> Callable[[str], str]:
    """What puts headings and names into a language: `chinese`, or nothing for English."""
    return chinese if lang == "zh" else str
