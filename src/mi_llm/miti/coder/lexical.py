"""The lexical coder: words alone (`codebook/lexical.py`). It gives no globals."""

from collections.abc import Sequence

from mi_llm.codebook import client as client_language
from mi_llm.codebook import lexical
from mi_llm.codebook.client import ClientCoding
from mi_llm.codebook.coding import Text, volley
from mi_llm.codebook.tables import Behaviours, Coding, Transcripts
from mi_llm.dialog import Turn
from mi_llm.language.language import DEFAULT
from mi_llm.study import Study

NAME = Text("the lexical coder (automatic: it recognizes words, not meaning)", "词语编码者（自动程序：只认词，不懂意思）")


def code(study: Study, stage: str, transcripts: Transcripts) -> list[Coding]:
    """What words alone show in each transcript."""
    return [Coding("lexical", packet, by_words(turns, study.language), {}) for packet, turns in transcripts.items()]


def client(study: Study, stage: str, transcripts: Transcripts) -> list[ClientCoding]:
    """What words alone show of the client's language in each transcript."""
    return [
        ClientCoding("lexical", packet, client_language.by_words(turns, study.language)) for packet, turns in transcripts.items()
    ]


def by_words(turns: Sequence[Turn], language: str = DEFAULT) -> Behaviours:
    """What the lexical coder sees in each counselor turn; `language` is the study's."""
    seen: Behaviours = {}
    client = ""
    for number, turn in enumerate(turns, 1):
        if turn.role == "client":
            client = turn.text
        else:
            seen[number] = volley(utterance.behaviour for utterance in lexical.code(client, turn.text, language))
    return seen
