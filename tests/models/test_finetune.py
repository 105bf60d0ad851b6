"""Fine-tuning: the same result however records are laid out and shared, after any kill, and a sentence for what goes wrong."""

import csv
import json
import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from forked import ended, start, together
from peft import PeftModel
from repository import PROGRAMS, ROOT
from ruamel.yaml import YAML
from tiny import MODELS, study_with
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mi_llm import storage
from mi_llm.dialog import Dialog, Turn, write_dialogs
from mi_llm.engine.estimate import shape_of
from mi_llm.engine.load import checkpoint, config_of, load
from mi_llm.engine.packing import first_fit, shares
from mi_llm.engine.template import FORMATS, IGNORED, LLAMA3, Encoded
from mi_llm.models.base import base
from mi_llm.models.card import card, source_of
from mi_llm.models.finetune import (
    Resume,
    Training,
    adapt,
    dry_run,
    finetune,
    fit,
    make_ready,
    order,
    records,
    records_of,
)
from mi_llm.problem import Problem
from mi_llm.study import Finetune, Study
from mi_llm.study import load as load_study

TORCHRUN = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc_per_node", "2"]
TALK = (
    Turn(role="client", text="你好"),
    Turn(role="counselor", text="请说"),
    Turn(role="client", text="我想戒烟"),
    Turn(role="counselor", text="你想戒烟"),
)


def changed(options: Finetune, **changes: Any) -> Finetune:
    return options.model_copy(update=changes)


@pytest.fixture
def ready(workspace: Path, checkpoints: Path, sample_dialogs: list[Dialog]) -> Study:
    """A small study whose stages before fine-tuning are done: 8 dialogs to train on."""
    study = study_with(finetune_epochs="3", save_every="2", threads="1", log_every="1")
    for model in study.models:
        base(study, model)
    write_dialogs(study.folder / "split" / "train.jsonl", sample_dialogs[:8])
    return study


def longer() -> Study:
    """The study with so many steps that a process can be killed between two of them."""
    return study_with(finetune_epochs="12")


# ---- records


def test_records_by_dialog_and_by_round(study: Study, tokenizer: PreTrainedTokenizerFast) -> None:
    dialog = Dialog(id="1", source="test", turns=TALK)
    whole = records([dialog], tokenizer, LLAMA3, study.finetune, "指示")
    rounds = records([dialog], tokenizer, LLAMA3, changed(study.finetune, records="round"), "指示")
    assert (whole.names, rounds.names) == (["1"], ["1#1", "1#2"])
    assert rounds.encoded[1].ids == whole.encoded[0].ids


def test_records_as_the_authors_file_has_them(study: Study, tokenizer: PreTrainedTokenizerFast) -> None:
    options = changed(study.finetune, records="release")
    by_round = Dialog(id="1", source="release", turns=TALK, meta={"records": "round"})
    by_dialog = Dialog(id="2", source="release", turns=TALK, meta={"records": "dialog"})
    assert records([by_round, by_dialog], tokenizer, LLAMA3, options, "指示").names == ["1#1", "1#2", "2"]
    with pytest.raises(Problem, match=r"3: meta.records is None"):
        records([Dialog(id="3", source="cpsycound", turns=TALK)], tokenizer, LLAMA3, options, "指示")


def test_only_the_first_so_many_records_are_taken(study: Study, tokenizer: PreTrainedTokenizerFast) -> None:
    dialogs = [Dialog(id=str(number), source="test", turns=TALK) for number in (1, 2)]
    options = changed(study.finetune, records="round", max_samples=3)
    assert records(dialogs, tokenizer, LLAMA3, options, "指示").names == ["1#1", "1#2", "2#1"]


def test_loss_on_the_last_reply_only(study: Study, tokenizer: PreTrainedTokenizerFast) -> None:
    taught = records([Dialog(id="1", source="test", turns=TALK)], tokenizer, LLAMA3, changed(study.finetune, loss="last"), "指示")
    assert tokenizer.decode([label for label in taught.encoded[0].labels if label != IGNORED]) == "你想戒烟<|eot_id|>"


def test_an_instruction_stands_before_the_last_client_turn_that_is_answered(
    study: Study, tokenizer: PreTrainedTokenizerFast
) -> None:
    dialog = Dialog(id="1", source="test", turns=(*TALK, Turn(role="client", text="谢谢")))
    taught = records([dialog], tokenizer, LLAMA3, changed(study.finetune, instruction_placement="query"), "指示")
    assert tokenizer.decode(taught.encoded[0].ids).endswith(
        "user<|end_header_id|>\n\n指示\n我想戒烟<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n你想戒烟<|eot_id|>"
    )


def test_each_epoch_sees_each_record_once_in_its_own_order() -> None:
    places = order(10, 2, seed=1)
    assert sorted(places[:10]) == sorted(places[10:]) == list(range(10))
    assert places[:10] != places[10:]


def test_what_is_cut_or_left_out_is_named_and_counted(ready: Study, tokenizer: PreTrainedTokenizerFast) -> None:
    dialogs = [
        Dialog(id="whole", source="test", turns=TALK),
        Dialog(id="empty", source="test", turns=()),
        Dialog(id="unanswered", source="test", turns=TALK[:1]),
        Dialog(id="long", source="test", turns=(*TALK, Turn(role="client", text="想" * 300), TALK[1])),
        Dialog(id="drowned", source="test", turns=(Turn(role="client", text="想" * 9000), TALK[1])),
    ]
    write_dialogs(ready.folder / "split" / "train.jsonl", dialogs)
    study = ready.model_copy(update={"finetune": changed(ready.finetune, cutoff=200, instruction_placement="query")})
    finetune(study, "tiny-llama3")
    folder = study.folder / "finetune" / "tiny-llama3"
    numbers = json.loads((folder / "metrics.json").read_text())
    rows = list(csv.DictReader((folder / "left_out.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["record"], row["outcome"]) for row in rows] == [
        ("empty", "left out"),
        ("unanswered", "left out"),
        ("long", "cut"),
        ("drowned", "cut"),
    ]
    assert rows[0]["reason"] == "no turns"
    assert rows[2]["reason"].endswith("tokens, of which 200 are kept")
    assert (numbers["records"], numbers["cut"], numbers["left_out"]) == (3, 2, 2)


# ---- layout


def test_a_step_is_shared_out_whole_to_any_number_of_processes(study: Study) -> None:
    chance = random.Random(1)
    lengths = [chance.randint(1, 50) for _ in range(20)]
    options = changed(study.finetune, batch=2, cutoff=50)
    for packed in (True, False):
        for processes in (1, 2, 3, 30):
            for device, most in (("cuda", 2), ("cpu", 1 if packed else 2)):
                dealt = shares(range(20), lengths, changed(options, packed=packed), processes, torch.device(device))
                assert len(dealt) == processes
                assert sorted(chain(*chain(*dealt))) == list(range(20))
                rows = [sum(lengths[number] for number in row) for row in chain(*dealt)]
                assert max(rows) <= most * max(lengths)  # what padding to the longest would take, at worst
    assert shares([3, 1, 2, 0], lengths, changed(options, packed=False), 1, torch.device("cpu")) == [[[3, 1], [2, 0]]]


def test_a_row_holds_whole_records_and_no_more_than_its_room() -> None:
    assert first_fit([0, 1, 2, 3, 4], [60, 50, 40, 40, 10], 100) == [[0, 2], [1, 3, 4]]
    assert first_fit([0, 1], [500, 60], 100) == [[0], [1]]


def prepared(folder: Path, options: Finetune) -> PeftModel:
    """A model with an adapter that is no longer nothing."""
    adapted = adapt(load(folder, options.precision)[0], options, seed=1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    return adapted


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def one_by_one(folder: Path, encoded: Sequence[Encoded], options: Finetune) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a step by plain transformers and peft, a record at a time."""
    model, total = prepared(folder, options), 0.0
    count = sum(label != IGNORED for record in encoded for label in record.labels[1:])
    for record in encoded:
        logits = model(input_ids=torch.tensor([record.ids])).logits[0, :-1]
        loss = cross_entropy(logits, torch.tensor(record.labels[1:]), ignore_index=IGNORED, reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def one_step(folder: Path, encoded: Sequence[Encoded], options: Finetune) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a step by the bundle."""
    model = prepared(folder, options)
    make_ready(model, options)
    training = Training(model, encoded, options, padding=1)
    total = training.add_up(training.backward(range(len(encoded))))
    return total.item(), gradients(model)


@pytest.mark.parametrize("model", MODELS)
def test_every_layout_has_the_loss_and_gradients_of_one_record_at_a_time(
    model: str, checkpoints: Path, study: Study, tokenizer: PreTrainedTokenizerFast, sample_dialogs: list[Dialog]
) -> None:
    options = changed(study.finetune, batch=2, cutoff=700)
    encoded = records(sample_dialogs[:5], tokenizer, FORMATS[study.models[model].chat_format], options, "指示").encoded
    loss, expected = one_by_one(checkpoints / model, encoded, options)
    for way in ({"packed": True}, {"packed": False}, {"packed": True, "checkpointing": True}):
        step_loss, grads = one_step(checkpoints / model, encoded, changed(options, **way))
        assert step_loss == pytest.approx(loss, rel=1e-6), way
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            assert (grad - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), (way, name)


def test_a_bfloat16_base_has_a_float32_adapter_and_nearly_the_same_loss(
    checkpoints: Path, study: Study, tokenizer: PreTrainedTokenizerFast, sample_dialogs: list[Dialog]
) -> None:
    encoded = records(sample_dialogs[:3], tokenizer, LLAMA3, study.finetune, "指示").encoded
    loss, _ = one_step(checkpoints / "tiny-llama3", encoded, study.finetune)
    low, grads = one_step(checkpoints / "tiny-llama3", encoded, changed(study.finetune, precision="bfloat16"))
    assert low == pytest.approx(loss, rel=5e-3)
    assert low != loss
    assert {grad.dtype for grad in grads.values()} == {torch.float32}


# ---- runs


@pytest.mark.parametrize("model", MODELS)
def test_tuning_lowers_the_loss_and_plain_peft_loads_the_adapter(ready: Study, model: str) -> None:
    finetune(ready, model)
    folder = ready.folder / "finetune" / model
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["last_loss"] < numbers["first_loss"]
    curve = (folder / "dvclive/plots/metrics/loss.tsv").read_text().splitlines()
    assert curve[0] == "step\tloss"
    assert len(curve) == 7
    assert sorted(path.name for path in (folder / "vllm").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(ready, model))
    adapted = PeftModel.from_pretrained(plain, folder / "adapter")
    tuned = {name.rsplit(".", 1)[-1] for name in adapted.peft_config["default"].target_modules}
    assert tuned == {"o_proj", "k_proj", "v_proj", "q_proj", "down_proj"} | (
        {"gate_up_proj"} if model == "tiny-glm4" else {"gate_proj", "up_proj"}
    )


def test_how_fast_it_went_is_told_outside_the_outputs(ready: Study) -> None:
    finetune(ready, "tiny-llama3")
    lines = [json.loads(line) for line in (ready.folder / ".speed" / "finetune-tiny-llama3.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    assert lines[-1]["seconds_left"] == 0
    assert lines[-1]["tokens_per_second"] > 0
    assert lines[-1]["memory_gib"] > 0.05


def tuning(study: Study) -> partial[None]:
    """The work that processes of these tests do."""
    return partial(finetune, study, "tiny-llama3")


def until_saved(state: Path, run: ForkServerProcess | subprocess.Popen[str]) -> None:
    """Wait until the run saves its state anew, or ends."""
    before = state.stat().st_mtime_ns if state.exists() else 0
    while (run.poll() if isinstance(run, subprocess.Popen) else run.exitcode) is None:
        if state.exists() and state.stat().st_mtime_ns != before:
            return
        time.sleep(0.001)


@pytest.mark.slow
def test_training_killed_at_any_moment_ends_in_the_same_bytes(ready: Study) -> None:
    finetune(ready, "tiny-llama3")
    folder = ready.folder / "finetune" / "tiny-llama3"
    whole, kills = taken_away(folder), 0
    state, chance = folder.parent / ".tiny-llama3.resume" / "state.pt", random.Random(1)
    for _ in range(4):
        process = start(tuning(ready))
        until_saved(state, process)
        time.sleep(chance.random() * 0.05)
        process.kill()
        kills += ended([process]) == [-signal.SIGKILL]
    finetune(ready, "tiny-llama3")
    assert kills >= 1
    assert taken_away(folder) == whole
    assert not state.exists()


def taken_away(folder: Path) -> dict[str, bytes]:
    """The files of a folder, which are then removed."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    for name in files:
        (folder / name).unlink()
    return files


# ---- many processes

SHARED = """
import json, os
from pathlib import Path
from torch.distributed.tensor import DTensor
from mi_llm.engine.load import checkpoint, load, prepare_torch
from mi_llm.models.finetune import Resume, Trainable, adapt, fit, is_shared, records_of, share_out
from mi_llm.engine.processes import Processes
from mi_llm.study import load as load_study
study = load_study(Path("mini/params.yaml"))
prepare_torch(study)
processes, found = Processes(), {}
for way in ("whole", "shared", "shared, checkpointing"):
    os.environ["ACCELERATE_USE_FSDP"] = str(way != "whole")
    options = study.finetune.model_copy(update={"checkpointing": "checkpointing" in way, "batch": 1, "accumulation": 4})
    shared = is_shared(checkpoint(study, "tiny-glm4"), options, processes)
    model, tokenizer = load(checkpoint(study, "tiny-glm4"), options.precision, in_main_memory=shared)
    taken = records_of(study, "tiny-glm4", tokenizer)
    adapted = adapt(model, options, 1)
    if shared:
        share_out(adapted)
    places = [*range(8), 0]
    progress = fit(adapted, taken.encoded, options, indices=places, padding=1, resume=Resume(Path("none"), ""), title="two")
    held = sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in adapted.parameters())
    adapter = {name: one.tolist() for name, one in Trainable(adapted).state_dict().items()}
    found[way] = {"losses": [row["loss"] for row in progress.log], "held": held, "adapter": adapter}
Path(f"found.{processes.rank}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one_whether_or_not_they_divide_the_base(ready: Study) -> None:
    options = changed(ready.finetune, batch=1, accumulation=4)
    model, tokenizer = load(checkpoint(ready, "tiny-glm4"), "float32")
    taught, adapted = records_of(ready, "tiny-glm4", tokenizer), adapt(model, options, 1)
    sizes = {weight.requires_grad: 0 for weight in adapted.parameters()}
    for weight in adapted.parameters():
        sizes[weight.requires_grad] += weight.numel()
    resume, places = Resume(Path("none"), ""), [*range(8), 0]
    alone = fit(adapted, taught.encoded, options, indices=places, padding=1, resume=resume, title="one")
    Path("two.py").write_text(SHARED)
    done = subprocess.run([*TORCHRUN, "two.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(Path(f"found.{rank}.json").read_text()) for rank in (0, 1)]
    for way in ("whole", "shared", "shared, checkpointing"):
        assert reports[0][way]["losses"] == pytest.approx([row["loss"] for row in alone.log], abs=1e-5)
        assert reports[0][way]["adapter"] == reports[1][way]["adapter"]
        held = [report[way]["held"] - sizes[True] for report in reports]
        if way == "whole":
            assert held == [sizes[False]] * 2
        else:
            assert sum(held) == sizes[False]
            assert max(held) < 0.6 * sizes[False]


@pytest.mark.slow
def test_when_one_of_two_processes_dies_the_other_says_so_and_the_next_run_goes_on(ready: Study) -> None:
    study = longer()
    assert ended(together(tuning(study), 2)) == [0, 0]
    folder = study.folder / "finetune" / "tiny-llama3"
    whole, state = taken_away(folder), folder.parent / ".tiny-llama3.resume" / "state.pt"

    processes = together(tuning(study), 2)
    until_saved(state, processes[0])
    processes[1].kill()
    assert ended(processes) == [2, -signal.SIGKILL]
    errors = Path("said.0").read_text(encoding="utf-8")
    assert "mi-llm: finetune tiny-llama3, process 0 of 2: another process has ended" in errors
    assert "run the same command again: it continues from the last saved step" in errors
    saved = torch.load(state)["progress"]["step"]
    assert 2 <= saved < 24

    assert ended(together(tuning(study), 2)) == [0, 0]
    assert f"{saved}/24" in Path("said.0").read_text(encoding="utf-8")
    assert taken_away(folder) == whole


@pytest.mark.slow
def test_torchrun_ends_with_a_sentence_when_a_process_dies(ready: Study) -> None:
    command = [*TORCHRUN, "-m", "mi_llm", "finetune", "tiny-llama3", "--study", "mini/params.yaml"]
    state = longer().folder / "finetune" / ".tiny-llama3.resume" / "state.pt"
    torchrun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until_saved(state, torchrun)
    (victim,) = [child for child in psutil.Process(torchrun.pid).children() if child.environ()["RANK"] == "1"]
    victim.kill()
    _, errors = torchrun.communicate()
    assert torchrun.returncode == 1
    assert "mi-llm: finetune tiny-llama3, process 0 of 2: " in errors
    assert not (ready.folder / "finetune" / "tiny-llama3" / "metrics.json").exists()


# ---- what goes wrong


def test_a_loss_that_is_no_number_names_the_step_and_the_dialogs(ready: Study) -> None:
    study = ready.model_copy(update={"finetune": changed(ready.finetune, learning_rate=1e30)})
    with pytest.raises(Problem) as caught:
        finetune(study, "tiny-llama3")
    assert caught.value.where.startswith("finetune tiny-llama3, step ")
    assert caught.value.found.startswith("a loss of nan, from case_")
    assert "finetune.learning_rate" in caught.value.remedy
    assert not (study.folder / "finetune" / "tiny-llama3" / "metrics.json").exists()


def test_too_little_memory_says_what_to_lower(ready: Study) -> None:
    model, _ = load(checkpoint(ready, "tiny-llama3"), "float32")
    options = changed(ready.finetune, cutoff=24_000)
    adapted = adapt(model, options, 1)
    long = Encoded([5] * 24_000, [5] * 24_000)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**27, limit[1]))
    try:
        with pytest.raises(Problem, match=r"(?s)step 0: out of memory: up to .* GiB were in use.*finetune.checkpointing: true"):
            fit(adapted, [long], options, indices=[0], padding=1, resume=Resume(Path("none"), ""), title="long")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def with_settings(**changes: int) -> Study:
    """The study with other numbers in its section `finetune`."""
    path = Path("mini/params.yaml")
    text = path.read_text(encoding="utf-8")
    head, section, rest = text.partition("\nfinetune:\n")
    for name, value in changes.items():
        rest, count = re.subn(rf"^  {name}: \d+", f"  {name}: {value}", rest, count=1, flags=re.MULTILINE)
        assert count == 1
    path.write_text(head + section + rest, encoding="utf-8")
    return load_study(path)


@pytest.mark.slow
def test_more_processes_than_records_of_a_step_are_refused(ready: Study) -> None:
    assert ended(together(tuning(with_settings(batch=1)), 2)) == [2, 2]
    errors = Path("said.0").read_text(encoding="utf-8")
    assert "mi-llm: finetune tiny-llama3: 2 processes\n  expected: at most 1: they share the 1 records of a step" in errors
    assert not (ready.folder / "finetune").exists()


def test_processes_that_do_not_divide_a_step_are_told(ready: Study) -> None:
    assert ended(together(tuning(with_settings(batch=3, epochs=1)), 2)) == [0, 0]
    line = "finetune tiny-llama3: 2 processes share the 3 records of a step unevenly: all wait for those that have 2\n"
    assert line in Path("said.0").read_text(encoding="utf-8")
    assert line not in Path("said.1").read_text(encoding="utf-8")


# ---- before and after


@pytest.mark.parametrize("model", MODELS)
def test_a_config_that_leaves_out_what_transformers_adds_has_the_same_shape(ready: Study, model: str) -> None:
    folder = checkpoint(ready, model)
    whole, config = shape_of(config_of(folder)), storage.read_json(folder / "config.json")
    left_out = {"attention_bias", "rope_parameters"}
    if model != "tiny-glm4":  # whose class has other sizes than these as defaults
        left_out |= {"head_dim"}
    if model == "tiny-baichuan2":
        left_out |= {"num_key_value_heads"}
    storage.write_json(folder / "config.json", {key: value for key, value in config.items() if key not in left_out})
    dry_run(ready, model)
    assert shape_of(config_of(folder)) == whole


def test_a_model_of_another_architecture_is_refused_in_words(ready: Study) -> None:
    path = checkpoint(ready, "tiny-llama3") / "config.json"
    path.write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(Problem, match=r"config\.json of a gpt2: no intermediate_size"):
        dry_run(ready, "tiny-llama3")
    path.write_text('{"model_type": "abacus"}', encoding="utf-8")
    with pytest.raises(Problem, match=r"(?s)config\.json: .*an architecture of transformers' own classes"):
        dry_run(ready, "tiny-llama3")


def test_a_dry_run_counts_and_estimates_and_writes_nothing(ready: Study, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(ready, "tiny-glm4")
    printed = capsys.readouterr().out
    assert "finetune tiny-glm4: 8 records, 3 epochs" in printed
    assert "steps     6 of 4 records (for at most 4 processes)" in printed
    assert not (ready.folder / "finetune").exists()


def head(text: str) -> dict[str, Any]:
    _, front, _ = text.split("---\n", 2)
    front_matter: dict[str, Any] = YAML(typ="safe").load(front)
    return front_matter


def test_the_card_beside_the_adapter_tells_how_to_load_it_and_holds_no_path_of_this_machine(ready: Study) -> None:
    finetune(ready, "tiny-glm4")
    text = (ready.folder / "finetune" / "tiny-glm4" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert head(text)["license"] == "cc0-1.0"
    assert "8 records with" in text
    assert str(ROOT) not in text
    assert str(Path.cwd()) not in text
    code = text.split("```python\n")[1].split("```")[0]
    loaded: dict[str, Any] = {}
    exec(code, loaded)
    assert isinstance(loaded["model"], PeftModel)


@pytest.mark.parametrize(
    ("model", "repository", "duty", "converted", "joined"),
    [
        ("baichuan2-7b", "baichuan-inc/Baichuan2-7B-Chat", "opensource@baichuan-inc.com", True, 17891328),
        ("glm-4-9b", "zai-org/glm-4-9b-chat-hf", 'begins with "glm-4"', False, 21176320),
        ("llama-3-8b-chinese", "shenzhi-wang/Llama3-8B-Chinese-Chat", 'begins with "Llama 3"', False, None),
    ],
)
def test_the_card_of_a_hub_model_names_its_commit_license_and_duties(
    model: str, repository: str, duty: str, converted: bool, joined: int | None, workspace: Path
) -> None:
    paper = load_study(ROOT / "params.yaml")
    source = source_of(paper, model)
    names = (
        "records",
        "tokens",
        "labelled_tokens",
        "cut",
        "left_out",
        "steps",
        "trainable_parameters",
        "first_loss",
        "last_loss",
    )
    text = card(paper, model, source, dict.fromkeys(names, 7))
    front = head(text)
    assert (front["base_model"], front["base_model_revision"], front["library_name"]) == (repository, source.revision, "peft")
    assert (front["license"], front["language"]) == ("llama3" if model.startswith("llama") else "other", "zh")
    assert duty in text
    assert ("are one matrix, for which LoRA has one matrix A" in text) is (joined is not None)
    assert joined is None or f"the published layout has {joined} trainable parameters" in text
    loads = f"runs/paper/base/{model}/checkpoint" if converted else repository
    assert f'AutoModelForCausalLM.from_pretrained("{loads}"' in text
    assert "stated no license" in text
