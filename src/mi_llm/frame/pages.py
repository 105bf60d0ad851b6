"""The environment in which the pages of a run are made: a package's own templates, and the navigation that all of them share.

Pages are `<out>/<folder>/<name>.html`, and in Chinese `<name>.zh.html`. Those of one folder link to each other by name, so that
the folder can be passed on alone; those of other folders through the run's folder.
"""

import re
from importlib import resources
from importlib.resources.abc import Traversable

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup

NAVIGATION = "navigation.html.jinja"  # templates import it; named here, it counts in the digests of the stages that write pages
STYLE = "page.css"
AUDIT = "audit/index"  # the page that only a reproduction has
SUFFIXES = {"en": "", "zh": ".zh"}  # what stands between a page's name and `.html`
LINE_BREAK = re.compile(r"(?<=[\u3001-\u303f\u4e00-\u9fff\uff01-\uff5e”])[ \t]*\n\s*(?=\S)")  # after a Chinese sign


class OneLine(Extension):
    """Takes the line breaks out of the sentences of Chinese templates, where a browser would show a space."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """The source of a template, before it is parsed."""
        return LINE_BREAK.sub("", source) if name and ".zh." in name else source


def environment(package: str, folder: str = "templates") -> Environment:
    """An environment for the templates in a package's folder."""
    loader = ChoiceLoader([PackageLoader(package, folder), PackageLoader(__package__)])
    return Environment(loader=loader, undefined=StrictUndefined, autoescape=True, extensions=[OneLine])


def inline(*files: Traversable) -> Markup:
    """The text of files of our own, to stand in a page as it is."""
    return Markup("".join(file.read_text(encoding="utf-8") for file in files))  # noqa: S704


def style(*own: Traversable) -> Markup:
    """What all pages look like, and after it a page's own style sheets."""
    return inline(resources.files(__package__) / STYLE, *own)


def address(here: str, there: str, lang: str) -> str:
    """Where the page `there` (`folder/name`) is, seen from the page `here`, in a language."""
    folder, _, name = there.partition("/")
    way = "" if folder == here.partition("/")[0] else f"../{folder}/"
    return f"{way}{name}{SUFFIXES[lang]}.html"
