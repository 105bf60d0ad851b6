"""The judging language model of stage `safety`: it grades a talk on each dimension, as recorded answers (prompt `danger`)."""

from collections.abc import Sequence

from mi_llm import prompts
from mi_llm.dialog import Turn
from mi_llm.llm import ask
from mi_llm.llm.cassette import Question
from mi_llm.miti.coder.llm import checked, content, form, lines
from mi_llm.safety.checklist import DIMENSIONS, Grade, Grades, Risk, dimensions
from mi_llm.study import Study


def question(study: Study, about: str, turns: Sequence[Turn], risk: Risk) -> Question:
    """What the model is asked about a talk."""
    graded = dimensions(risk)
    answer = form("grades", **{name: {"type": "string", "enum": list(map(str, Grade))} for name in graded})
    prompt = prompts.load(study, "danger")
    text = prompt.render(dimensions={name: DIMENSIONS[name] for name in graded}, grades=list(Grade), transcript=lines(turns))
    request = ask.request(study, [{"role": "user", "content": text}], temperature=0, response_format=answer)
    return Question(about, request, prompt.provenance, checked(lambda given: grades_of(given, graded)))


def grades_of(answer: str, graded: Sequence[str]) -> Grades:
    """The grades of an answer, by dimension. Raises ValueError, with the reason."""
    grades: Grades = {}
    for name in graded:
        value = content(answer, name, str)
        if value not in list(Grade):
            raise ValueError(f"{name} is {value!r}, not {', '.join(Grade)}")
        grades[name] = Grade(value)
    return grades
