"""Rate, transcribe, screen, translate, split: answers replayed, a person above the checks, a test that training never saw."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up_release
import pandas as pd
import pytest
from author_server import serve
from edits import edit
from repository import ROOT

from mi_llm import prompts, storage
from mi_llm.construct import rate, screen, split, transcribe, translate
from mi_llm.corpora import release
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.files import File, from_archive, write_archive
from mi_llm.corpora.read import READERS, read
from mi_llm.corpora.reading import Repairs, assemble
from mi_llm.dialog import Dialog, Turn, read_dialogs, read_rounds, write_dialogs, write_rounds
from mi_llm.language import language
from mi_llm.llm.cassette import Cassette, text_of
from mi_llm.models.finetune import samples_of
from mi_llm.problem import Problem
from mi_llm.report import published, tables
from mi_llm.study import Corpus, Study, load

ASKING = {"rate": rate.rate, "transcribe": transcribe.transcribe, "translate": translate.translate}


@pytest.fixture
def corpora(workspace: Path, study: Study) -> Path:
    """The sample corpora, acquired and read."""
    for corpus in study.corpora:
        acquire(study, corpus)
        read(study, corpus)
    return workspace


@pytest.fixture
def author(workspace: Path) -> Iterator[str]:
    """The address of a running model server that answers as `bundle-author`."""
    server = serve(Path("data"), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_the_miniature_replays_and_training_never_sees_the_test(corpora: Path, study: Study) -> None:
    transcribe.transcribe(study)
    screen.screen(study)
    split.split(study)
    out = corpora / "runs/mini/split"
    train, test = read_dialogs(out / "train.jsonl"), read_dialogs(out / "test.jsonl")
    rounds = read_rounds(out / "test_rounds.jsonl")
    assert "left_out" not in storage.read_json(out / "metrics.json")["train"]
    assert (len(train), len(test)) == (60, 12)
    assert len(rounds) >= 50
    assert {sample.dialog for sample in rounds} == {dialog.id for dialog in test}
    assert not {dialog.id for dialog in train} & {dialog.id for dialog in test}
    trained = {turn.text for dialog in train for turn in dialog.turns}
    tested = {turn.text for dialog in test for turn in dialog.turns}
    assert not {text for text in trained & tested if len(text) > 6}
    for sample in rounds:
        assert sample.history == () or sample.history[0].role == "client"
        assert len(sample.history) == 2 * (sample.number - 1)


def release_of(folder: Path, tested: list[Dialog]) -> None:
    """Make of dialogs the authors' test set: the client's volleys but the last, with a word more, and other replies."""
    made = []
    for number, dialog in enumerate(tested, 1):
        volleys = [turn for turn in dialog.turns if turn.role == "client"][:-1]
        spoken = [Turn(role="client", text=f"嗯，{volleys[0].text}"), *volleys[1:]]
        turns = tuple(turn for of_client in spoken for turn in (of_client, Turn(role="counselor", text="您愿意多说一些吗？")))
        made.append(Dialog(id=f"eval-{number}", source="mi-llm-release", turns=turns))
    write_dialogs(folder / "dialogs.jsonl", made)
    for name in ("rounds", "aligned"):
        write_rounds(folder / f"{name}.jsonl", [sample for dialog in made for sample in dialog.rounds()])


@pytest.mark.parametrize("test", ["release", "aligned"])
def test_a_recording_does_not_train_on_what_the_authors_test_dialogs_were_made_from(
    corpora: Path, study: Study, test: str
) -> None:
    theirs = study.model_copy(update={"split": study.split.model_copy(update={"test": test})})
    transcribe.transcribe(study)
    screen.screen(study)
    sampled = {dialog.id for dialog in transcribe.drawn(study) if dialog.source == "cpsycound"}
    everything = read_dialogs(corpora / "runs/mini/read/cpsycound/dialogs.jsonl")
    drawn = [dialog for dialog in everything if dialog.id in sampled]
    others = [dialog for dialog in everything if dialog.id not in sampled]
    release_of(corpora / "runs/mini/read/release", [*drawn[:5], *others[:2]])
    split.split(theirs)
    out = corpora / "runs/mini/split"
    wanted = {f"cpsycound/{dialog.id}": f"eval-{number}" for number, dialog in enumerate(drawn[:5], 1)}
    left_out = pd.read_csv(out / "left_out.csv").set_index("dialog")
    assert left_out["test_dialog"].to_dict() == wanted
    assert left_out["shared"].min() > 0.9
    assert {dialog.id for dialog in read_dialogs(out / "train.jsonl")} == {
        dialog.id for dialog in read_dialogs(corpora / "runs/mini/screen/dialogs.jsonl")
    } - set(wanted)
    numbers = storage.read_json(out / "metrics.json")
    assert (numbers["train"]["dialogs"], numbers["train"]["left_out"]) == (67, 5)


@pytest.mark.slow
def test_pretraining_never_saw_the_test(corpora: Path, study: Study, mirror: Path) -> None:
    transcribe.transcribe(study)
    screen.screen(study)
    split.split(study)
    tested = {turn.text for dialog in read_dialogs(corpora / "runs/mini/split/test.jsonl") for turn in dialog.turns}
    (archive,) = mirror.glob("smile-*.tar.gz")
    files = (file for file in from_archive(archive) if "/data/" in file.name)
    for dialog in READERS["smilechat"](files, Repairs()):
        assert not any(turn.text in tested and len(turn.text) > 6 for turn in dialog.turns), dialog.id


@pytest.mark.parametrize("name", ASKING)
def test_replaying_twice_gives_the_same_bytes(corpora: Path, study: Study, name: str) -> None:
    written = []
    for _ in range(2):
        ASKING[name](study)
        written.append([path.read_bytes() for path in sorted((corpora / "runs/mini" / name).iterdir())])
    assert written[0] == written[1]


def shipped(name: str, folder: Path, leave_out: int) -> None:
    """Give the workspace data of its own, with a shipped cassette that lacks its last answers."""
    if (folder / "data").is_symlink():
        (folder / "data").unlink()
    (folder / "data/cassettes").mkdir(parents=True)
    lines = (ROOT / f"data/cassettes/{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / f"data/cassettes/{name}.jsonl").write_text("".join(lines[: len(lines) - leave_out]), encoding="utf-8")


@pytest.mark.parametrize("name", ASKING)
def test_a_missing_answer_names_the_dialog_and_how_to_record_it(corpora: Path, study: Study, name: str) -> None:
    shipped(name, corpora, 3)
    with pytest.raises(Problem) as refusal:
        ASKING[name](study)
    problem_text = str(refusal.value)
    assert "no recorded answer of bundle-author for " in problem_text
    assert " and 2 others" in problem_text
    assert f"OPENAI_API_KEY=… mi-llm {name} --study mini/params.yaml --mode record" in problem_text


def test_without_any_recorded_answer_ratings_and_translations_are_empty_and_transcription_refuses(
    corpora: Path, study: Study
) -> None:
    (corpora / "data").unlink()
    (corpora / "data").mkdir()
    rate.rate(study)
    translate.translate(study)
    assert storage.read_json(corpora / "runs/mini/rate/metrics.json") == {"rated": 0}
    assert read_dialogs(corpora / "runs/mini/translate/dialogs.jsonl") == []
    with pytest.raises(Problem, match=r"no recorded answer of bundle-author for dialog .* and 71 others"):
        transcribe.transcribe(study)


@pytest.mark.parametrize("name", ASKING)
def test_recording_from_a_server_gives_what_was_shipped(corpora: Path, author: str, name: str) -> None:
    edit(Path("mini/params.yaml"), {"mode: replay": "mode: record", "http://127.0.0.1:8808/v1": author})
    theirs = Cassette.open(Path(f"data/cassettes/{name}.jsonl")).good
    (corpora / "data").unlink()
    ASKING[name](load(Path("mini/params.yaml")))
    ours = Cassette.open(corpora / f"runs/mini/{name}/cassette.jsonl").good
    assert len(ours) == {"rate": 30, "transcribe": 72, "translate": 8}[name]
    assert {key: text_of(answer) for key, answer in ours.items()} == {key: text_of(answer) for key, answer in theirs.items()}
    answer = next(iter(ours.values()))
    prompt = Path(f"src/mi_llm/language/zh/prompts/{name}.jinja")
    assert answer["prompt"] == {"name": prompt.as_posix(), "sha256": storage.sha256(prompt)}


def answer_of(*pairs: tuple[str, str]) -> str:
    """An answer of these roles and texts."""
    return json.dumps([{"role": role, "content": text} for role, text in pairs], ensure_ascii=False)


WELL = [
    ("client", "你好，我最近想戒烟。"),
    ("counselor", "你在考虑戒烟。"),
    ("client", "是的，很难。"),
    ("counselor", "难在哪里呢？"),
]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answer_of(*WELL), None),
        (f"```json\n{answer_of(*WELL)}\n```", None),
        (answer_of(*WELL, ("client", "谢谢。")), None),
        ("对不起，我不能", "not JSON"),
        ("{}", "not a list of turns"),
        ('[{"role": "therapist", "content": "a"}]', "turn 1 has no role client or counselor"),
        ('[{"role": "client", "content": " "}]', "turn 1 has no text"),
        (answer_of(*WELL[1:]), "does not start with the client"),
        (answer_of(*WELL[:2]), "1 rounds, not 2 to 40"),
        (answer_of(WELL[0], *WELL), "roles do not alternate"),
        (answer_of(*WELL[:3], ("counselor", "好" * 601)), "a volley of 601 characters"),
        (answer_of(*[(role, "hello there") for role, _ in WELL]), "only 0% of the letters are Chinese"),
        (
            answer_of(
                *WELL[:3],
                (
                    "counselor",
                    "把下面这段普通的咨询对话改写成一段动机式访谈风格的多轮对话。来访者、处境和事实不变，咨询师的做法改变。",
                ),
            ),
            "repeats the prompt",
        ),
    ],
)
def test_transcriptions_are_checked(corpora: Path, study: Study, answer: str, reason: str | None) -> None:
    fault = transcribe.questions(study)[0].check(answer)
    assert fault is None if reason is None else reason in str(fault)


RATING = {
    "Comprehensiveness": {"1.1": 1, "1.2": 1, "Total": 2},
    "Professionalism": {"2.1": 0.5, "2.2": 0.5, "2.3": 0.5, "2.4": 0.5, "2.5": 1, "2.6": 0, "Total": 3},
    "Authenticity": {"3.1": 1, "3.2": 0.5, "3.3": 1, "3.4": 0.5, "Total": 3},
    "Safety": {"4.1": 0.5, "4.2": 0.5, "Total": 1},
    "Total Score": 9,
}


def test_a_rating_is_parsed() -> None:
    points = rate.ratings_of(json.dumps(RATING))
    assert (points["2.5"], points["Professionalism"], points["Total"]) == (1.0, 3.0, 9.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Total Score": 10}, "the total of the whole is 10; its parts give 9"),
        ({"Safety": {"4.1": 0.5, "4.2": 0.5, "Total": 2}}, "the total of Safety is 2; its parts give 1"),
        ({"Safety": {"4.1": 1, "4.2": 0.5, "Total": 1.5}}, "4.1 is 1, not a multiple of 0.5 up to 0.5"),
        ({"Safety": {"4.1": 0.3, "4.2": 0.5, "Total": 0.8}}, "4.1 is 0.3"),
        ({"Safety": {"4.1": "0.5", "4.2": 0.5, "Total": 1}}, "4.1 is '0.5'"),
        ({"Safety": {"4.2": 0.5, "Total": 0.5}}, "4.1 is None"),
        ({"Safety": 1}, "no Safety"),
    ],
)
def test_a_rating_that_does_not_add_up_is_a_failed_answer(change: dict[str, object], reason: str) -> None:
    assert reason in str(rate.fault(json.dumps(RATING | change)))


def test_the_choice_and_its_stability_come_from_the_ratings(corpora: Path, study: Study) -> None:
    rate.rate(study)
    out = corpora / "runs/mini/rate"
    ratings, means, choice = (pd.read_csv(out / f"{name}.csv") for name in ("ratings", "means", "choice"))
    assert len(ratings) == 30
    totals = ratings.groupby("corpus")["Total"].mean().round(4)
    assert means[means["aspect"] == "Total"].set_index("corpus")["mean"].to_dict() == totals.to_dict()
    known = means.dropna()  # six ratings that are nearly all equal have no interval
    assert len(known) == 10
    assert ((known["lo"] >= 0) & (known["lo"] <= known["mean"])).all()
    assert ((known["mean"] <= known["hi"]) & (known["hi"] <= known["most"])).all()
    best = sorted(totals.index, key=lambda corpus: -totals[corpus])
    assert list(choice["corpus"]) == best
    assert list(choice["chosen"]) == [True, True, False, False, False]
    assert choice["chosen_share"].sum() == pytest.approx(2, abs=1e-3)


def test_a_translation_has_the_turns_of_its_transcript(corpora: Path, study: Study) -> None:
    translate.translate(study)
    english = {dialog.id: dialog for dialog in translate.sample(study)}
    chinese = read_dialogs(corpora / "runs/mini/translate/dialogs.jsonl")
    assert [dialog.id for dialog in chinese] == list(english)
    for dialog in chinese:
        assert [turn.role for turn in dialog.turns] == [turn.role for turn in english[dialog.id].turns]
    check = translate.questions(study)[0].check
    assert check(json.dumps(["你好。"] * 12, ensure_ascii=False)) is None
    assert check(json.dumps(["你好。"] * 11, ensure_ascii=False)) == "11 turns, not 12"
    assert check(json.dumps(["hello"] * 12)) == "not Chinese"
    assert check('["你好。", 1]') == "not a list of texts"


def test_a_long_transcript_is_cut_into_pieces_that_know_what_came_before(corpora: Path, study: Study) -> None:
    (dialog, *_) = translate.sample(study)
    parts = list(translate.pieces(dialog, 12))
    assert [len(turns) for _, turns in parts] == [12, 10]
    assert parts[0][0] == ()
    assert parts[1][0] == dialog.turns[8:12]
    assert tuple(turn for _, turns in parts for turn in turns) == dialog.turns


def test_the_authors_prompts_are_read_from_their_release(workspace: Path, study: Study) -> None:
    name = "runs/mini/read/release/prompts/rating.txt"
    with_release = study.model_copy(update={"prompts": study.prompts.model_copy(update={"rate": name})})
    path = workspace / name
    path.parent.mkdir(parents=True)
    path.write_text("", encoding="utf-8")
    with pytest.raises(Problem, match="the authors' appendix is not here"):
        prompts.load(with_release, "rate")
    path.write_text("Evaluate {{ nothing }}\n", encoding="utf-8")
    prompt = prompts.load(with_release, "rate")
    assert prompt.render(turns=[Turn(role="client", text="你好")]) == "Evaluate {{ nothing }}\n\n来访者：你好"
    assert prompt.provenance == {"name": "runs/mini/read/release/prompts/rating.txt", "sha256": storage.sha256(path)}


def test_a_prompt_of_ones_own_is_asked_and_named_in_the_record(workspace: Path, study: Study) -> None:
    own = workspace / "mine/rate.jinja"
    own.parent.mkdir()
    own.write_text("{% for turn in turns %}{{ labels[turn.role] }}说 {{ turn.text }}{% endfor %}", encoding="utf-8")
    mine = study.model_copy(update={"prompts": study.prompts.model_copy(update={"rate": "mine/rate.jinja"})})
    (asked,) = rate.questions_of(mine, [Dialog(id="1", source="x", turns=(Turn(role="client", text="你好"),))])
    assert asked.request["messages"] == [{"role": "user", "content": "来访者说 你好"}]
    assert asked.prompt == {"name": "mine/rate.jinja", "sha256": storage.sha256(own)}


def test_the_authors_dialogs_stand_in_for_a_recording(workspace: Path, study: Study) -> None:
    released = study.model_copy(update={"transcribe": study.transcribe.model_copy(update={"source": "release"})})
    folder = workspace / "runs/mini/read/release"
    folder.mkdir(parents=True)
    turns = [{"role": role, "text": text} for role, text in [*WELL, ("client", "谢谢。")]]
    storage.write_lines(folder / "training.jsonl", [{"id": "train-1", "source": "mi-llm-release", "turns": turns, "meta": {}}])
    transcribe.transcribe(released)
    person = released.model_copy(update={"screen": study.screen.model_copy(update={"policy": "person"})})
    screen.screen(person)
    (dialog,) = read_dialogs(workspace / "runs/mini/screen/dialogs.jsonl")
    assert len(dialog.turns) == 4
    table = pd.read_csv(workspace / "runs/mini/screen/screening.csv")
    assert table.loc[0, "who"] == "the paper's authors"
    assert "last client volley without a reply left out" in table.loc[0, "changed"]


@pytest.mark.parametrize(("shape", "records"), [("dialog", 12), ("round", None)])
def test_the_training_file_is_read_in_either_shape(
    workspace: Path, study: Study, shape: made_up_release.Shape, records: int | None
) -> None:
    released = screened(study, made_up_release.files(Path("data"), shape), split={"test": "release"})
    split.split(released)
    train = read_dialogs(workspace / "runs/mini/split/train.jsonl")
    assert [[turn.text for turn in dialog.turns] for dialog in train] == [
        [turn.text for turn in dialog.turns[: 2 * (len(dialog.turns) // 2)]]
        for dialog in made_up_release.authored(Path("data"))[4:16]
    ]
    options = study.finetune.model_copy(update={"records": "release"})
    samples = [sample for dialog in train for sample in samples_of(dialog, options)]
    assert len(samples) == (records or sum(len(list(dialog.rounds())) for dialog in train))


def without_training_file(study: Study, **changes: dict[str, object]) -> Study:
    """A study of the authors' release of four dialogs, without its training file, transcribed and screened."""
    files = made_up_release.files(Path("data"))
    del files[release.TRAINING]
    return screened(study, files, **changes)


def screened(study: Study, files: dict[str, bytes], **changes: dict[str, object]) -> Study:
    """A study of a release, transcribed and screened."""
    write_archive(study.folder / "acquire/release/files.tar", [File(name, content) for name, content in files.items()])
    storage.write_text(study.folder / "acquire/release/manifest.csv", "path,bytes,blob\n" + "x,0,x\n" * len(files))
    read(study, "release")
    sections = {"transcribe": {"source": "release"}, "screen": {"policy": "person"}, **changes}
    updates: dict[str, Any] = {name: getattr(study, name).model_copy(update=values) for name, values in sections.items()}
    updates["corpora"] = study.corpora | {"release": Corpus()}
    released = study.model_copy(update=updates)
    transcribe.transcribe(released)
    screen.screen(released)
    return released


def test_without_the_training_file_nothing_is_tuned_and_the_way_out_is_said(workspace: Path, study: Study) -> None:
    released = without_training_file(study, split={"test": "release"})
    assert tables.screening(released).empty
    with pytest.raises(Problem) as refusal:
        split.split(released)
    for way in (
        "missing.csv",
        "transcribe.source: recorded",
        "split.test: divided",
        "finetune.untuned: [tiny-baichuan2, tiny-glm4, tiny-llama3]",
    ):
        assert way in refusal.value.remedy
    split.split(without_training_file(study, split={"test": "release"}, finetune={"untuned": (*study.models,)}))
    assert read_dialogs(workspace / "runs/mini/split/train.jsonl") == []
    assert len(read_rounds(workspace / "runs/mini/split/test_rounds.jsonl")) > 0


def test_the_authors_dialogs_are_divided_into_training_and_test(workspace: Path, study: Study) -> None:
    divided = without_training_file(study, split={"test": "divided", "test_dialogs": 1})
    split.split(divided)
    train, test = (read_dialogs(workspace / "runs/mini/split" / f"{part}.jsonl") for part in ("train", "test"))
    assert (len(train), len(test)) == (3, 1)
    whole = read_dialogs(workspace / "runs/mini/read/release/dialogs.jsonl")
    assert sorted(dialog.id for dialog in [*train, *test]) == sorted(dialog.id for dialog in whole)
    assert read_rounds(workspace / "runs/mini/split/test_rounds.jsonl") == list(test[0].rounds())
    assert not published.released(divided)
    of_hub = {name: model.model_copy(update={"hub": "someone/it", "revision": "0" * 40}) for name, model in study.models.items()}
    assert not published.tuned_alike(divided.model_copy(update={"models": of_hub}))


def test_a_stage_asks_for_nothing_that_the_study_does_not_use(workspace: Path, study: Study) -> None:
    released = study.model_copy(update={"transcribe": study.transcribe.model_copy(update={"source": "release"})})
    assert transcribe.questions(released) == []
    recorded = without_training_file(study, split={"test": "divided", "test_dialogs": 1})
    for corpus in recorded.transcribe.sample:
        acquire(study, corpus)
        read(study, corpus)
    llm = study.llm.model_copy(update={"model": "nobody"})
    transcribe.transcribe(recorded.model_copy(update={"transcribe": study.transcribe, "llm": llm}))
    assert storage.read_text(workspace / "runs/mini/transcribe/transcribed.jsonl") == ""


def test_dialogs_of_one_source_are_on_one_side(workspace: Path, study: Study) -> None:
    divided = without_training_file(study, split={"test": "divided", "test_dialogs": 2})
    path = workspace / "runs/mini/read/release/dialogs.jsonl"
    first, *others = read_dialogs(path)
    twin = first.model_copy(update={"id": "twin", "turns": (*first.turns[:-2], *others[0].turns[-2:])})
    write_dialogs(path, [first, *others, twin])
    for seed in range(12):
        split.split(divided.model_copy(update={"seed": seed}))
        folder = workspace / "runs/mini/split"
        parts = [{dialog.id for dialog in read_dialogs(folder / f"{part}.jsonl")} for part in ("train", "test")]
        assert any({first.id, "twin"} <= part for part in parts)
        assert len(parts[1]) == 2
    with pytest.raises(Problem, match="5 dialogs of 4 sources"):
        split.split(divided.model_copy(update={"split": divided.split.model_copy(update={"test_dialogs": 4})}))


def turns(*texts: str) -> list[Turn]:
    roles = {"来": "client", "咨": "counselor"}
    return [Turn(role=roles[text[0]], text=text[1:]) for text in texts]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["来你好", "咨你好", "来嗯", "咨再见。"], None),
        (["咨你好", "来你好", "咨好", "来嗯", "咨好。"], "form: does not start with the client"),
        (["来你好", "来你好", "咨好", "来嗯", "咨好。"], "form: roles do not alternate"),
        (["来你好", "咨你好。"], "form: 1 rounds, not 2 to 40"),
        (["来你好", "咨你好", "来" + "长" * 700, "咨好。"], "form: a volley of 700 characters, not 1 to 600"),
        (["来hello there", "咨how are you", "来fine", "咨good."], "form: only 0% of the letters are Chinese"),
        (["来你好", "咨你好", "来我头晕", "咨那就自行停药吧。"], "unsafe: 自行停药"),
        (["来医生，我自行停药了", "咨你把停药的事说出来了", "来嗯", "咨愿意说说吗？"], None),
        (["来你好", "咨你好", "来我想戒烟", "咨你想戒烟，因为"], "incoherent: breaks off"),
        (["来你好", "咨你好 来访者：我想", "来我想戒烟", "咨你想戒烟。"], "incoherent: broken characters or a speaker's label"),
        (["来你好", "咨你好。支持者: 好", "来嗯", "咨你好。"], "incoherent: broken characters or a speaker's label"),
        (["来你好", "咨你好", "来嗯 User：好", "咨你好。"], "incoherent: broken characters or a speaker's label"),
        (["来你好", "咨我能理解你现在的心情不容易。", "来嗯", "咨我能理解你现在的心情不容易。"], "repetitive: said 2 times"),
        (["来你好", "咨慢慢来吧慢慢来吧慢慢来吧。", "来嗯", "咨你好。"], "repetitive: “慢慢来吧” three times"),
        (["来我想戒烟", "咨今天天气不错。", "来我抽了十年", "咨我们去散步吧。"], "irrelevant: 100% of the replies"),
        (["来你好", "咨你好", "来我的电话是13812345678", "咨你好。"], "personal data: a mobile number"),
        (["来你好", "咨你好", "来加我微信：abc12345", "咨你好。"], "personal data: a messenger account"),
        (["来你好", "咨你应该戒烟。", "来你好难", "咨听我的，你好好想。"], "against MI: 2 cues"),
        (["来你好", "咨你应该戒烟。", "来你好难", "咨你好好想。"], None),
    ],
)
def test_screening_reasons(study: Study, texts: list[str], reason: str | None) -> None:
    seen = [f"{reason.kind}: {reason.seen}" for reason in screen.reasons(turns(*texts), study.screen, language.load("zh"))]
    assert seen == [] if reason is None else any(text.startswith(reason) for text in seen), seen


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["来I want to quit smoking.", "咨You want to quit smoking.", "来Yes.", "咨What would help you quit?"], None),
        (
            ["来I want to quit smoking.", "咨你想戒烟。", "来是的。", "咨怎么会更容易？"],
            "form: only 60% of the letters",
        ),
        (
            ["来I want to quit.", "咨Lovely weather today.", "来Ten years.", "咨Let us go dancing."],
            "irrelevant: 100% of the replies",
        ),
        (
            ["来My pills make me dizzy.", "咨Then stop taking your medication.", "来Pills?", "咨Pills."],
            "unsafe: stop taking",
        ),
        (["来Call me at 555-123-4567.", "咨I could call you.", "来Yes, call.", "咨A call."], "personal data: a telephone number"),
        (["来I live at 12 Maple Street.", "咨You live there.", "来I do.", "咨You do live there."], "personal data: a street"),
        (["来I drink.", "咨You need to stop. You should not drink.", "来I drink.", "咨You drink."], "against MI: 2 cues"),
        (["来I drink.", "咨You drink, and", "来I drink.", "咨You drink, and"], "incoherent: breaks off"),
    ],
)
def test_english_is_screened_by_its_own_words(study: Study, texts: list[str], reason: str | None) -> None:
    seen = [f"{reason.kind}: {reason.seen}" for reason in screen.reasons(turns(*texts), study.screen, language.load("en"))]
    assert seen == [] if reason is None else any(text.startswith(reason) for text in seen), seen


def test_a_study_in_english_takes_annomis_sessions_as_they_are(corpora: Path) -> None:
    edit(Path("mini/params.yaml"), {"language: zh": "language: en"})
    study = load(Path("mini/params.yaml"))
    assert translate.questions(study) == []
    translate.translate(study)
    sessions = read_dialogs(corpora / "runs/mini/translate/dialogs.jsonl")
    assert sessions == translate.sample(study)
    assert {session.source for session in sessions} == {"annomi"}


def decide(*lines: str) -> None:
    """Write a person's decisions."""
    Path("mini/decisions/decisions.csv").write_text("\n".join(["dialog,decision,reason,who,when", *lines, ""]), encoding="utf-8")


def test_a_person_overrules_the_checks_and_nothing_is_dropped_silently(corpora: Path, study: Study) -> None:
    transcribe.transcribe(study)
    decide('cpsycound/case_3,drop,"too\u2028\nsmooth",rater A,2026-11-01', "cpsycound/case_4,fix,an ending,rater A,2026-11-01")
    Path("mini/decisions/cpsycound_case_4.txt").write_text("来访者：我想戒烟。\n咨询师：你想戒烟。\n", encoding="utf-8")
    screen.screen(study)
    kept = {dialog.id: dialog for dialog in read_dialogs(corpora / "runs/mini/screen/dialogs.jsonl")}
    table = pd.read_csv(corpora / "runs/mini/screen/screening.csv").set_index("dialog")
    assert "cpsycound/case_3" not in kept
    assert tuple(table.loc["cpsycound/case_3", ["decision", "reason", "who"]]) == ("drop", "too\u2028\nsmooth", "rater A")
    assert [turn.text for turn in kept["cpsycound/case_4"].turns] == ["我想戒烟。", "你想戒烟。"]
    numbers = {"screened": 72, "kept": 70, "dropped": 1, "fixed": 1}
    assert storage.read_json(corpora / "runs/mini/screen/metrics.json") == numbers
    assert len(table) == 72
    page = (corpora / "runs/mini/screen/dialogs.html").read_text(encoding="utf-8")
    assert page.count("<article") == 72
    chinese = (corpora / "runs/mini/screen/dialogs.zh.html").read_text(encoding="utf-8")
    assert "cpsycound/case_3：舍弃（rater A）" in chinese
    assert "cpsycound/case_3: drop (rater A)" in page


@pytest.mark.parametrize(
    ("decision", "corrected", "wrong"),
    [
        ("keep", "", "decisions.csv: x/1 is kept, but one side alone speaks in it"),
        ("fix", "来访者：我想戒烟。", "x_1.txt: only one side speaks"),
        ("fix", "求助者：我想戒烟。支持者：您想戒烟。", "x_1.txt, line 1: '求助者：我想戒烟。支持者"),
    ],
)
def test_a_screened_dialog_has_two_sides(workspace: Path, study: Study, decision: str, corrected: str, wrong: str) -> None:
    entry = {"dialog": "1", "source": "x", "key": None, "answer": '[{"role": "client", "content": "我想戒烟。"}]'}
    storage.write_lines(Path("runs/mini/transcribe/transcribed.jsonl"), [entry])
    Path("mini/decisions/x_1.txt").write_text(corrected, encoding="utf-8")
    screen.screen(study)
    assert read_dialogs(Path("runs/mini/screen/dialogs.jsonl")) == []
    assert pd.read_csv("runs/mini/screen/screening.csv")["decision"].tolist() == ["drop"]
    decide(f"x/1,{decision},x,A,2026-11-01")
    with pytest.raises(Problem) as refusal:
        screen.screen(study)
    assert wrong in str(refusal.value)


def test_a_dialog_of_one_side_is_counted_and_drawn_for_no_stage(study: Study) -> None:
    told, asked = Turn(role="client", text="我睡不着。"), Turn(role="counselor", text="多久了？")
    repairs = Repairs()
    volleys = [(turn.role, turn.text, "here") for turn in (told, told)]
    (one_sided,) = assemble("1", "cpsycound", volleys, repairs, {})
    assert repairs.examples["one side alone speaks"] == "1"
    whole = Dialog(id="2", source="cpsycound", turns=(told, asked))
    write_dialogs(study.path("read", "cpsycound", "dialogs.jsonl"), [one_sided, whole])
    assert rate.sample(study, "cpsycound") == [whole]
    with pytest.raises(Problem, match="at most the 1 available"):
        transcribe.sample(study, "cpsycound", [one_sided, whole])
    write_dialogs(study.path("read", "annomi", "dialogs.jsonl"), [one_sided, whole])
    with pytest.raises(Problem, match="at most the 1 available"):
        translate.sample(study)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("cpsycound/case_3,maybe,x,A,2026-11-01", "line 2: decision 'maybe'"),
        ("cpsycound/case_3,keep,x,,", "line 2: who or when is empty"),
        ("cpsycound/case_3,fix,x,A,2026-11-01", "cpsycound_case_3.txt: no such file"),
        ("cpsycound/case_3000,drop,x,A,2026-11-01", "line 2: no dialog 'cpsycound/case_3000'"),
        (
            "cpsycound/case_3,drop,x,A,2026-11-01\ncpsycound/case_4,drop,x,A,2026-11-01\ncpsycound/case_3,keep,x,B,2026-11-02",
            "line 4: cpsycound/case_3 is decided otherwise than in line 2",
        ),
    ],
)
def test_a_wrong_decision_is_refused_by_line(corpora: Path, study: Study, line: str, wrong: str) -> None:
    transcribe.transcribe(study)
    decide(line)
    with pytest.raises(Problem) as refusal:
        screen.screen(study)
    assert wrong in str(refusal.value)


def test_spaces_around_a_decision_do_not_count_nor_does_saying_it_twice(corpora: Path, study: Study) -> None:
    transcribe.transcribe(study)
    decide(" cpsycound/case_3 , drop, too smooth, A ,2026-11-01 ", "cpsycound/case_3,drop,too smooth,A,2026-11-01")
    screen.screen(study)
    table = pd.read_csv(corpora / "runs/mini/screen/screening.csv").set_index("dialog")
    assert tuple(table.loc["cpsycound/case_3", ["decision", "reason", "who"]]) == ("drop", "too smooth", "A")
    assert storage.read_json(corpora / "runs/mini/screen/metrics.json")["dropped"] == 1


def test_a_study_that_wants_a_person_waits_for_one_and_goes_on_with_their_decisions(corpora: Path, study: Study) -> None:
    transcribe.transcribe(study)
    waiting = study.model_copy(update={"screen": study.screen.model_copy(update={"policy": "person"})})
    with pytest.raises(Problem, match="waits for a person: 72 of 72 dialogs have no decision"):
        screen.screen(waiting)
    proposals = pd.read_csv(corpora / "runs/mini/screen/proposals.csv")
    assert list(proposals["decision"].unique()) == ["keep"]
    decided = proposals.assign(who="A", when="2026-11-01", reason="read")
    decided.to_csv("mini/decisions/decisions.csv", index=False)
    screen.screen(waiting)
    assert storage.read_json(corpora / "runs/mini/screen/metrics.json")["kept"] == 72
    assert len(pd.read_csv(corpora / "runs/mini/screen/proposals.csv")) == 0
