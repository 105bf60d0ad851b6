"""The lexical coder: words alone (`codebook/lexical.py`). It gives no globals."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from mi_llm import storage
from mi_llm.codebook import client as client_language
from mi_llm.codebook import lexical
from mi_llm.codebook.client import ClientCoding
from mi_llm.codebook.coding import Text, volley
from mi_llm.codebook.tables import Behaviours, Coding, Transcripts
from mi_llm.dialog import Turn
from mi_llm.study import Cues, Study

NAME = Text("the lexical coder (automatic: it recognizes words, not meaning)", "词语编码者（自动程序：只认词，不懂意思）")


def rater(study: Study) -> str:
    """What its codes are called: those by other cues than the bundle's have another name, since other cues are another coder."""
    own = [name for name in Cues.model_fields if not bundled(name, Path(getattr(study.code.cues, name)))]
    return "lexical:own" if own else "lexical"


def bundled(name: str, path: Path) -> bool:
    """Whether a file of cues says what the bundle's does."""
    return bool(storage.read_yaml(path) == storage.read_yaml(resources.files("mi_llm.codebook") / f"cues_{name}.yaml"))


def code(study: Study, stage: str, transcripts: Transcripts) -> list[Coding]:
    """What words alone show in each transcript."""
    name = rater(study)
    return [Coding(name, packet, by_words(turns, study.code.cues), {}) for packet, turns in transcripts.items()]


def client(study: Study, stage: str, transcripts: Transcripts) -> list[ClientCoding]:
    """What words alone show of the client's language in each transcript."""
    name, cues = rater(study), study.code.cues
    return [ClientCoding(name, packet, client_language.by_words(turns, cues)) for packet, turns in transcripts.items()]


def by_words(turns: Sequence[Turn], cues: Cues | None = None) -> Behaviours:
    """What the lexical coder sees in each counselor turn, by a study's cues or the bundle's."""
    seen: Behaviours = {}
    client = ""
    for number, turn in enumerate(turns, 1):
        if turn.role == "client":
            client = turn.text
        else:
            seen[number] = volley(utterance.behaviour for utterance in lexical.code(client, turn.text, cues))
    return seen
