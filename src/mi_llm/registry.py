"""Corpora, coders, chat formats and languages that parameters may name. Each is a file or folder in the folder of its kind.

A corpus is a module of `corpora/`, a coder a module of `miti/coder/`, that says by a constant `NAME` what people call it; a chat
format is a template in `engine/templates/`, or the one that a checkpoint brings; a language is a folder of `language/`. A study
is checked against the names alone, and nothing is imported for that.
"""

import re
from functools import cache
from importlib import import_module, resources
from types import ModuleType

CHECKPOINT = "checkpoint"  # the chat format that a model brings itself
CORPORA, CODERS = "mi_llm.corpora", "mi_llm.miti.coder"  # the packages whose modules are found by their names
NAMED = re.compile(r"^NAME\b", re.MULTILINE)


@cache
def names(package: str) -> tuple[str, ...]:
    """The modules of one of these packages that have a `NAME`, in alphabetical order."""
    files = (file for file in resources.files(package).iterdir() if file.name.endswith(".py"))
    return tuple(sorted(file.name.removesuffix(".py") for file in files if NAMED.search(file.read_text(encoding="utf-8"))))


def modules(package: str, having: str = "NAME") -> dict[str, ModuleType]:
    """The modules behind the names: those that have something of a name, by default all."""
    modules_by_name = {name: import_module(f"{package}.{name}") for name in names(package)}
    return {name: module for name, module in modules_by_name.items() if hasattr(module, having)}


@cache
def chat_formats() -> tuple[str, ...]:
    """The chat formats: `checkpoint`, and the training templates, without the forms that models were published with."""
    templates = (file.name for file in (resources.files("mi_llm.engine") / "templates").iterdir())
    own = sorted(name.removesuffix(".jinja") for name in templates if name.endswith(".jinja") and name.count(".") == 1)
    return (CHECKPOINT, *own)


@cache
def languages() -> tuple[str, ...]:
    """The languages that have a folder, in alphabetical order."""
    folders = resources.files("mi_llm.language").iterdir()
    return tuple(sorted(folder.name for folder in folders if (folder / "language.yaml").is_file()))
