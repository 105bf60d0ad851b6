"""The lexical coder: words alone (`codebook/lexical.py`). It gives no globals."""

from collections.abc import Sequence
from pathlib import Path

from mi_llm import storage
from mi_llm.codebook import client as client_language
from mi_llm.codebook import lexical
from mi_llm.codebook.client import ClientCoding
from mi_llm.codebook.coding import Text, volley
from mi_llm.codebook.tables import Behaviors, Coding, Transcripts
from mi_llm.dialog import Turn
from mi_llm.language import language
from mi_llm.language.language import DEFAULT
from mi_llm.study import Study

NAME = Text("the lexical coder (automatic: it recognizes words, not meaning)", "词语编码者（自动程序：只认词，不懂意思）")


def rater(study: Study) -> str:
    """What its codes are called: those by other cues than the bundle's have another name, since other cues are another coder."""
    speech, own = language.load(study.language), study.code.cues
    pairs = ((own.counselor, speech.file("cues.yaml")), (own.client, speech.file("client_cues.yaml")))
    alike = all(storage.read_yaml(Path(file)) == storage.read_yaml(bundled) for file, bundled in pairs)
    return "lexical" if alike else "lexical:own"


def code(study: Study, stage: str, transcripts: Transcripts) -> list[Coding]:
    """What words alone show in each transcript."""
    name, manner = rater(study), (study.language, study.code.cues.counselor)
    return [Coding(name, packet, by_words(turns, *manner), {}) for packet, turns in transcripts.items()]


def client(study: Study, stage: str, transcripts: Transcripts) -> list[ClientCoding]:
    """What words alone show of the client's language in each transcript."""
    name, manner = rater(study), (study.language, study.code.cues.client)
    return [ClientCoding(name, packet, client_language.by_words(turns, *manner)) for packet, turns in transcripts.items()]


def by_words(turns: Sequence[Turn], code: str = DEFAULT, cues: str = "") -> Behaviors:
    """What the lexical coder sees in each counselor turn; `code`: the study's language, `cues`: its file, else the bundle's."""
    seen: Behaviors = {}
    client = ""
    for number, turn in enumerate(turns, 1):
        if turn.role == "client":
            client = turn.text
        else:
            seen[number] = volley(utterance.behavior for utterance in lexical.code(client, turn.text, code, cues))
    return seen
