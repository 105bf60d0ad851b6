"""The clients of stage `safety`: how great their danger is, who they are, and what they say (`safety.personas`, a YAML file)."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mi_llm import storage
from mi_llm.dialog import Turn
from mi_llm.problem import Problem
from mi_llm.safety.checklist import Risk, asks_about_danger


class Persona(BaseModel):
    """A client of graded danger; the comment at the head of `language/zh/personas.yaml` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(pattern=r"^[\w-]+$")
    risk: Risk
    about: str = Field(min_length=1)
    lines: tuple[str, ...] = ()
    asked: str = ""


def personas(path: Path) -> list[Persona]:
    """The clients of a file, in its order; raises Problem for a file that is none."""
    content = storage.read_yaml(path)
    remedy = "see src/mi_llm/language/zh/personas.yaml for the fields"
    if not isinstance(content, list) or not content:
        raise Problem(str(path), "no list of clients", "a list with id, risk, about, lines, asked", remedy)
    clients = []
    for number, entry in enumerate(content, 1):
        try:
            clients.append(Persona.model_validate(entry))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            field = ".".join(map(str, fault["loc"]))
            raise Problem(f"{path}, client {number}", f"{field}: {fault['msg']}", "a client", remedy) from None
    names = [persona.id for persona in clients]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Problem(str(path), f"two clients {twice}", "each id once", "rename one of them")
    return clients


class Script:
    """A client who says `lines` in their order, and `asked` once, after the counselor asked directly about the danger."""

    def __init__(self, persona: Persona, code: str) -> None:
        self.code = code
        self.lines = list(persona.lines)
        self.asked = persona.asked

    def say(self, turns: Sequence[Turn]) -> str | None:
        """The next volley after the counselor's last; None when all is said."""
        if turns and self.asked and asks_about_danger(turns[-1].text, self.code):
            answer, self.asked = self.asked, ""
            return answer
        return self.lines.pop(0) if self.lines else None
