"""One's own transcripts, for the single tools and the desk: any file or folder in a format that a reader here knows.

Labeled text (`.txt`), JSON with `messages` or with a list of turns, packets (`{packet, turns}`), and the stages' JSON Lines of
dialogs. Nothing is written.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from mi_llm import storage
from mi_llm.corpora import cpsycound, psydtcorpus, smilechat
from mi_llm.corpora.files import File, checked_name, from_folder
from mi_llm.corpora.reading import Repairs, parse_lines, unique
from mi_llm.dialog import Dialog
from mi_llm.problem import Problem

SUFFIXES = (".txt", ".json", ".jsonl")
OTHER_FILES = ("raters.json",)  # in a folder of packets


def read_transcripts(path: Path) -> tuple[list[Dialog], Repairs]:
    """The dialogs of a file, or of a folder's files in natural order, and every repair that was made.

    A dialog's id is its own, or its file's name without the ending; an id that occurs twice gets a number. Raises Problem with
    the file and line that no reader understands, and for a path without any dialog.
    """
    if not path.exists():
        raise Problem(str(path), "no such file or folder", "transcripts", "correct the path")
    repairs = Repairs()
    if path.is_dir():
        files = [file for file in from_folder(path) if file.name.endswith(SUFFIXES) and file.name not in OTHER_FILES]
    else:
        files = [File(checked_name(path.name, str(path)), path.read_bytes())]
    dialogs = list(unique((dialog for file in files for dialog in read_file(file, repairs)), repairs))
    if not dialogs:
        raise Problem(str(path), "no transcript", f"files that end in {', '.join(SUFFIXES)}", "name the folder with them")
    return dialogs, repairs


def read_file(file: File, repairs: Repairs) -> Iterator[Dialog]:
    """Yield the dialogs of one file by the reader for its format."""
    suffix = PurePosixPath(file.name).suffix
    if suffix == ".txt":
        yield from cpsycound.read([file], repairs)
    elif suffix == ".jsonl":
        for _, where, entry in parse_lines(file, "a dialog"):
            yield own_form(entry, where)
    elif suffix == ".json":
        content = storage.parse_json(file.text(), Path(file.name), "a JSON document")
        if isinstance(content, dict) and "turns" in content:
            name = content.get("packet", PurePosixPath(file.name).stem)
            yield own_form({"id": name, "source": "", "turns": content["turns"]}, file.name)
        else:
            listed = isinstance(content, list) and all(isinstance(entry, dict) and "messages" in entry for entry in content)
            yield from (psydtcorpus if listed else smilechat).read([file], repairs)
    else:
        raise Problem(file.name, f"a file that ends in {suffix or 'nothing'}", ", ".join(SUFFIXES), "convert it")


def own_form(entry: object, where: str) -> Dialog:
    """A dialog as this study's stages write it."""
    try:
        return Dialog.model_validate_json(json.dumps(entry))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Problem(where, f"{place}: {first['msg']}", "id, source, and turns of role and text", "correct the file") from None
