"""The prompts are files: `prompts/<name>.jinja`, each with a header that says what it is for and where it comes from."""

import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path("prompts")


def render(name: str, **inputs: Any) -> str:
    """Fill in one prompt; a missing input is an error. Text from a dialog is inserted as it is, never as template code."""
    environment = Environment(loader=FileSystemLoader(FOLDER), undefined=StrictUndefined)  # noqa: S701 — plain text, not HTML
    return environment.get_template(f"{name}.jinja").render(**inputs).strip()


def sha256(name: str) -> str:
    """SHA-256 of a prompt's file."""
    return hashlib.sha256((FOLDER / f"{name}.jinja").read_bytes()).hexdigest()
