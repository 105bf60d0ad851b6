"""LLaMA-Factory made ready for the study's models and dialogs: what the scripts of this folder share.

They run in an environment of their own (benchmarks/peers.sh), without this bundle's package. Reads model folders and dialogs;
writes what LLaMA-Factory wants to find: a model folder whose tokenizer names its special tokens, a data folder.
"""

import json
from pathlib import Path
from typing import Any

# What the published models' tokenizer configs say; the bundle's tiny tokenizer serves three formats and says nothing.
SPECIAL = {
    "baichuan2": {"bos_token": "<s>", "eos_token": "</s>"},
    "glm4": {"eos_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
}
Rounds = list[tuple[str, str]]


def peak_memory() -> float:
    """The most memory this process has held so far, in MB (Linux; `getrusage` would count the process that started it too)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def know_baichuan2() -> None:
    """Register the template `baichuan2` as LLaMA-Factory 0.9.2 defined it in data/template.py; later releases dropped it."""
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import TEMPLATES, register_template

    if "baichuan2" not in TEMPLATES:
        register_template(
            name="baichuan2",
            format_user=StringFormatter(slots=["<reserved_106>{{content}}<reserved_107>"]),
            efficient_eos=True,
        )


def alpaca(rounds: Rounds, instruction: str, placement: str) -> dict[str, Any]:
    """One dialog as a record of LLaMA-Factory's alpaca format, the instruction in the last client turn or in a system turn."""
    *history, (client, counselor) = rounds
    return {
        "instruction": instruction if placement == "query" else "",
        "input": client,
        "output": counselor,
        "history": history,
        "system": instruction if placement == "system" else "",
    }


def model_folder(model: Path, template: str, folder: Path) -> Path:
    """Make a model folder of links, but with a tokenizer config that names the special tokens of the template's model."""
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **SPECIAL[template]}), encoding="utf-8")
    return folder


def data_folder(records: list[dict[str, Any]], folder: Path) -> Path:
    """Make a data folder with one dataset in it, `dialogs`."""
    folder.mkdir(parents=True)
    (folder / "dialogs.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    columns = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
    (folder / "dataset_info.json").write_text(json.dumps({"dialogs": {"file_name": "dialogs.json", "columns": columns}}))
    return folder
