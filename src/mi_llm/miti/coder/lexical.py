"""The lexical coder: words alone (`codebook/lexical.py`). It gives no globals."""

from mi_llm.codebook.coding import Text
from mi_llm.miti.code import LEXICAL, Coding, Transcripts, by_words
from mi_llm.study import Study

NAME = Text("the lexical coder (automatic: it recognizes words, not meaning)", "词语编码者（自动程序：只认词，不懂意思）")


def code(study: Study, transcripts: Transcripts) -> list[Coding]:
    """What words alone show in each transcript."""
    return [Coding(LEXICAL, packet, by_words(turns), {}) for packet, turns in transcripts.items()]
