"""The tokens of one dialog on every way to a model: as trained, as answered here, as served here, as an exported adapter's files
give them. No stage; people call it, before they spend hours on a model, or where its replies look wrong.

Reads the base checkpoint without its weights, and the first training dialog, or before stage `split` a short one that stands
here. Writes nothing.
"""

import sys
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mi_llm import prompts
from mi_llm.dialog import Dialog, Turn, read_dialogs
from mi_llm.engine.counselor import chats, questions
from mi_llm.engine.load import chat_format, checkpoint, load_tokenizer
from mi_llm.engine.own_format import stops_named
from mi_llm.engine.template import Exchange, encode, messages, prompt
from mi_llm.models.export import write_chat_files
from mi_llm.problem import Problem
from mi_llm.study import Study

SHOWN = 40  # tokens of a text that is shown
EXAMPLE = Dialog(
    id="an example",
    source="example",
    turns=(
        Turn(role="client", text="我想少喝点酒，可是一到周末就忍不住。"),
        Turn(role="counselor", text="周末对您来说是最难的时候。"),
        Turn(role="client", text="对，朋友一叫我就去了。"),
        Turn(role="counselor", text="您既看重朋友，又想照顾好自己的身体。"),
    ),
)


def check(study: Study, model: str) -> int:
    """Compare the prompts of a dialog's last round, and the tokens that end its reply; returns 1 if any differ, else 0.

    Raises Problem where the study has no checkpoint yet, and for a chat template that cannot be used.
    """
    folder = checkpoint(study, model)
    if not folder.exists():
        raise Problem(str(folder), "missing", "the output of stage base", f"run mi-llm base {model} --study {study.params}")
    dialog = dialog_of(study)
    *_, last = dialog.rounds()
    tokenizer, form = load_tokenizer(folder), chat_format(study, model)
    said = messages(dialog.turns[: len(last.history) + 2], prompts.instruction(study), study.finetune.instruction_placement)
    exchanges = next(form.exchanges(tokenizer, [said], last_only=True))[0]
    asked, request = chats([last], study)[0], questions(study, [last], model, "base")[0].request
    with tempfile.TemporaryDirectory() as exported:
        write_chat_files(study, model, Path(exported))
        elsewhere = AutoTokenizer.from_pretrained(exported, trust_remote_code=False, local_files_only=True)
        ways = {
            "as trained": before_reply(exchanges),
            "as answered here": prompt(tokenizer, form, asked),
            "as served here": prompt(tokenizer, form, request["messages"]),
            "as exported": elsewhere.apply_chat_template(asked, add_generation_prompt=True)["input_ids"],
        }
        stops = stops_named(Path(exported))
    (record,) = encode(tokenizer, form, [said], sys.maxsize, last_only=True)
    end = record.labels[-1]
    print(f"{model}, chat format {form.name}: {dialog.id}, the prompt of round {last.number}")
    trained = ways["as trained"]
    for way, ids in ways.items():
        print(f"  {way:<17} {compared(tokenizer, trained, ids)}")
    ended = {*stops} == {*form.stop_ids(tokenizer)} and end in stops
    ends = ", ".join(tokenizer.convert_ids_to_tokens(stops))
    print(f"  replies           taught to end with {tokenizer.convert_ids_to_tokens(end)}; end at {ends}")
    print(f"  it ends with      {tokenizer.decode(trained[-SHOWN:])!r}")
    return int(not ended or any(ids != trained for ids in ways.values()))


def dialog_of(study: Study) -> Dialog:
    """The first training dialog with a round, where there is one."""
    train = study.path("split", "train.jsonl")
    return next((dialog for dialog in (read_dialogs(train) if train.exists() else ()) if any(dialog.rounds())), EXAMPLE)


def before_reply(exchanges: Sequence[Exchange]) -> list[int]:
    """The tokens of a record in front of its last reply."""
    *earlier, last = exchanges
    return [token for exchange in earlier for token in exchange.put + exchange.reply] + last.put


def compared(tokenizer: PreTrainedTokenizerBase, trained: list[int], ids: list[int]) -> str:
    """How many tokens a way gives, and how its text differs from what was trained on."""
    if ids == trained:
        return f"{len(ids)} tokens, equal" if ids is not trained else f"{len(ids)} tokens"
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(trained, ids, strict=False)))
    here, there = (tokenizer.decode(tokens[max(0, same - 5) : same + SHOWN]) for tokens in (ids, trained))
    return f"{len(ids)} tokens, from token {same} on {here!r} in place of {there!r}"
