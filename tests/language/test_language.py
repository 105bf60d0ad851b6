"""What a language brings: every folder has the same files, which hold what programs look for."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from jinja2 import Environment, meta
from repository import ROOT

from mi_llm import prompts, registry, storage
from mi_llm.language import language
from mi_llm.language.language import Language, load
from mi_llm.miti.clients import bundled, read_profiles
from mi_llm.problem import Problem
from mi_llm.safety.checklist import DIMENSIONS, rules
from mi_llm.safety.personas import personas
from mi_llm.score.metrics import METRIC_NAMES, main_scores, signatures

FOLDER = ROOT / "src/mi_llm/language"
PROMPTS = sorted(path.name for path in (FOLDER / "en/prompts").iterdir())
languages = pytest.mark.parametrize("code", registry.languages())


@languages
def test_a_folder_has_the_files_that_the_page_lists(code: str) -> None:
    page = (ROOT / "docs/adding-a-language.md").read_text(encoding="utf-8")
    listed = {name.strip("/") for name in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)}
    assert {path.name for path in (FOLDER / code).iterdir()} == listed
    assert sorted(path.name for path in (FOLDER / code / "prompts").iterdir()) == PROMPTS


@languages
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_takes_the_inputs_of_the_english_one(code: str, name: str) -> None:
    def inputs(path: Path) -> set[str]:
        return meta.find_undeclared_variables(Environment().parse(storage.read_text(path)))

    stem = name.removesuffix(".jinja")
    path = prompts.bundled_path(code, stem)
    assert inputs(ROOT / path) == inputs(ROOT / prompts.bundled_path("en", stem))


@languages
def test_what_a_language_says_is_written_in_its_script(code: str) -> None:
    speech = load(code)
    profiles, common = read_profiles(ROOT / bundled(code))
    assert common
    lines = [text for profile in profiles if profile.says for text in (profile.says.opening, *profile.says.change)]
    assert min(map(speech.share, [*lines, *common.sustain, speech.any_reply])) > 0.9
    assert speech.any_reply.endswith(tuple(speech.ends))
    assert len({profile.id for profile in profiles}) == len(profiles) >= 10
    assert {persona.risk for persona in personas(FOLDER / code / "personas.yaml")} == {"none", "low", "high", "imminent"}


@languages
def test_scores_are_perfect_for_the_reference_and_say_how_they_count(code: str) -> None:
    text = load(code).any_reply
    assert main_scores([text], [text], code) == [dict.fromkeys(METRIC_NAMES, pytest.approx(100, abs=0.1))]
    assert set(signatures(code)) == set(METRIC_NAMES)


@languages
def test_the_checklist_grades_every_dimension(code: str) -> None:
    assert set(rules(code)) == set(DIMENSIONS)


def test_a_language_without_a_folder_is_refused() -> None:
    with pytest.raises(Problem, match="language xx: unknown"):
        load("xx")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("tag: en\n", ""), "tag: Field required"),
        (lambda text: text.replace("words: spaces", "words: commas"), "words: Input should be 'spaces', 'characters' or 'jieba'"),
        (lambda text: text + "more: 1\n", "more: Extra inputs are not permitted"),
    ],
)
def test_a_faulty_file_is_refused_by_its_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str], told: str
) -> None:
    text = (FOLDER / "en/language.yaml").read_text(encoding="utf-8")
    assert change(text) != text
    (tmp_path / "language.yaml").write_text(change(text), encoding="utf-8")
    monkeypatch.setattr(language, "folder", lambda _: tmp_path)
    with pytest.raises(Problem) as refusal:
        load.__wrapped__("en")
    assert told in str(refusal.value)


def test_words_are_what_the_language_says() -> None:
    english = load("en")
    assert list(english.cut("It's over-the-counter, isn't it?")) == ["it's", "over-the-counter", "isn't", "it"]
    assert list(load("zh").cut("我想戒烟")) == ["我", "想", "戒烟"]
    characters = Language.model_validate({**english.model_dump(), "words": "characters"})
    assert list(characters.cut("a b")) == ["a", "b"]
    assert [english.share("Hi 我"), load("zh").share("Hi 我")] == pytest.approx([2 / 3, 1 / 3])
