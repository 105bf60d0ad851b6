"""A language model, that of section `llm` of the parameters, by recorded answers."""

from mi_llm.codebook.coding import Text
from mi_llm.llm import ask
from mi_llm.llm.cassette import Question
from mi_llm.miti.code import Coding, Transcripts, by_model, packets, questions_about
from mi_llm.study import Study

NAME = Text("a language model (automatic): {raters}", "语言模型（自动）：{raters}")


def code(study: Study, transcripts: Transcripts) -> list[Coding]:
    """What the model answered about each transcript; nothing where nothing is recorded."""
    return by_model(study, "code", transcripts)


def questions(study: Study) -> list[Question]:
    """The requests that the codes take."""
    return questions_about(study, "code", packets(study.path("blind", "packets")))


def remedy(study: Study) -> str:
    """How to record the answers."""
    return ask.how_to_record(study, "code")
