"""The functions behind `mi-llm tool`, for Python: what docs/api.md shows, and nothing else that is promised to stay.

They take and give plain lists, dialogs (`mi_llm.dialog`), and pandas tables. They need no study, and only `code_with_model`
writes a file, its recorded answers.
"""

from mi_llm.corpora.own.understand import read_transcripts
from mi_llm.tools.agree import agreement, read_codes
from mi_llm.tools.code import by_transcript, code_transcripts, code_with_model
from mi_llm.tools.score import Pairs, read_pairs, score_replies
from mi_llm.tools.tables import arm_tables, read_coded, read_key

__all__ = [
    "Pairs",
    "agreement",
    "arm_tables",
    "by_transcript",
    "code_transcripts",
    "code_with_model",
    "read_coded",
    "read_codes",
    "read_key",
    "read_pairs",
    "read_transcripts",
    "score_replies",
]
