"""The tables' headings and names in Chinese: `chinese.yaml`, and the names that the codebook, the verdicts and the corpora bring.

Names that belong to a study (its models, its corpora, file names) stay as they are; so do numbers.
"""

import re
from functools import cache
from importlib import resources

from mi_llm import storage
from mi_llm.audit import verdict
from mi_llm.registry import CORPORA, modules
from mi_llm.report import manual, safety


@cache
def words() -> tuple[dict[str, str], dict[re.Pattern[str], str]]:
    """English to Chinese: whole texts, and patterns whose groups are translated too."""
    content = storage.read_yaml(resources.files(__package__) / "chinese.yaml")
    corpora = {module.NAME: module.NAME_ZH for module in modules(CORPORA).values() if hasattr(module, "NAME_ZH")}
    patterns = {re.compile(pattern): into for pattern, into in content["patterns"].items()}
    return manual.CHINESE | safety.CHINESE | verdict.CHINESE | corpora | content["names"], patterns


def chinese(text: str) -> str:
    """A heading or a name in Chinese; unchanged where there is no translation."""
    names, patterns = words()
    if text in names:
        return names[text]
    for pattern, translation in patterns.items():
        if match := pattern.fullmatch(text):
            return translation.format(*map(chinese, match.groups()))
    return text
