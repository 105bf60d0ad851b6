"""The environment in which the pages of a run are made: a package's own templates, and the navigation that all of them share.

Pages are `<out>/<folder>/<name>.html`, and in Chinese `<name>.zh.html`. Those of one folder link to each other by name, so that
the folder can be passed on alone; those of other folders through the run's folder.
"""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

NAVIGATION = "navigation.html.jinja"
SUFFIXES = {"en": "", "zh": ".zh"}  # what stands between a page's name and `.html`


def environment(package: str, folder: str = "templates") -> Environment:
    """An environment for the templates in a package's folder."""
    loader = ChoiceLoader([PackageLoader(package, folder), PackageLoader(__package__)])
    return Environment(loader=loader, undefined=StrictUndefined, autoescape=True)


def address(here: str, there: str, lang: str) -> str:
    """Where the page `there` (`folder/name`) is, seen from the page `here`, in a language."""
    folder, _, name = there.partition("/")
    way = "" if folder == here.partition("/")[0] else f"../{folder}/"
    return f"{way}{name}{SUFFIXES[lang]}.html"
