"""The fixed instruction is the file that the parameters name."""

from pathlib import Path

import pytest
from edits import edit

from mi_llm.problem import Problem
from mi_llm.prompts import instruction
from mi_llm.study import load


def test_the_instruction_is_the_file_that_is_named_whatever_the_bundle_calls_its_own(workspace: Path) -> None:
    edit(
        Path("mini/params.yaml"),
        {"instruction: src/mi_llm/language/zh/prompts/counselor.jinja": "instruction: mini/counselor.jinja"},
    )
    study, own = load(Path("mini/params.yaml")), Path("mini/counselor.jinja")
    with pytest.raises(Problem, match=r"mini/counselor\.jinja: no such file"):
        instruction(study)
    own.write_text("{# mine #}\n请{{ labels.client }}多说一些。\n", encoding="utf-8")
    assert instruction(study) == "请来访者多说一些。"
    own.write_text("一\n{{ labels.client", encoding="utf-8")
    with pytest.raises(Problem, match=r"mini/counselor\.jinja, line 2"):
        instruction(study)
    own.write_text("{{ profile }}", encoding="utf-8")
    with pytest.raises(Problem, match="'profile' is undefined"):
        instruction(study)
