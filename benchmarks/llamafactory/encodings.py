"""Writes the encoding reference of tests/engine/test_llamafactory.py: dialogs as LLaMA-Factory's own code turns them into tokens.

Reads `dialogs.json` beside the reference and a tokenizer of the bundle's tiny models. Each dialog goes through LLaMA-Factory's
alpaca converter, its templates and its processors for training and for prediction. Run it in LLaMA-Factory's environment:

    .peers/llamafactory/bin/python benchmarks/llamafactory/encodings.py
"""

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import preparing
from llamafactory.data.converter import AlpacaDatasetConverter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.processor import SupervisedDatasetProcessor, UnsupervisedDatasetProcessor
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "references" / "llamafactory"
TOKENIZER = ROOT / "pretrain" / "models" / "tiny-glm4"
LONG = 10_000


def mark(token: int, label: int, eos: int) -> str:
    """A label in one character: `.` none, `x` the token itself, `e` the end of a reply."""
    return {-100: ".", token: "x", eos: "e"}[label]


def encoded(template: str, record: dict[str, Any], cutoff: int, last_only: bool, tokenizers: Path) -> dict[str, Any]:
    """Token ids and labels for training, and the prompt's ids for prediction, of one alpaca record."""
    arguments = DataArguments(template=template, cutoff_len=cutoff, mask_history=last_only)
    tokenizer = AutoTokenizer.from_pretrained(tokenizers / template)
    parts = (get_template_and_fix_tokenizer(tokenizer, arguments), tokenizer, None, arguments)
    columns = DatasetAttr("file", "dialogs", history="history", system="system")
    converted = AlpacaDatasetConverter(columns, arguments)(record)
    batch = {name: [value] for name, value in converted.items()}
    trained = SupervisedDatasetProcessor(*parts).preprocess_dataset(batch)
    asked = UnsupervisedDatasetProcessor(*parts).preprocess_dataset(batch)
    ids, labels = trained["input_ids"][0], trained["labels"][0]
    marks = "".join(mark(token, label, tokenizer.eos_token_id) for token, label in zip(ids, labels, strict=True))
    return {"ids": ids, "labels": marks, "prompt": asked["input_ids"][0]}


def main() -> None:
    """Encode every case for every template."""
    preparing.know_baichuan2()
    inputs = json.loads((FOLDER / "dialogs.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        for template in preparing.SPECIAL:
            preparing.model_folder(TOKENIZER, template, Path(scratch) / template)

        def case(template: str, name: str, placement: str, cutoff: int, last_only: bool) -> dict[str, Any]:
            record = preparing.alpaca(inputs["dialogs"][name], inputs["instruction"], placement)
            about = {"template": template, "dialog": name, "placement": placement, "cutoff": cutoff, "last_only": last_only}
            encoding = encoded(template, record, cutoff, last_only, Path(scratch))
            if cutoff < LONG or last_only:  # the study never cuts a prompt, and knows only one
                encoding.pop("prompt")
            return {**about, **encoding}

        cases = []
        for template in preparing.SPECIAL:
            for last_only in (False, True):
                for placement in ("query", "system"):
                    cases += [case(template, name, placement, LONG, last_only) for name in inputs["dialogs"]]
                whole = case(template, inputs["cut"], "system", LONG, last_only)
                cutoffs = range(1, len(whole["ids"]) + 2)
                cases += [case(template, inputs["cut"], "system", cutoff, last_only) for cutoff in cutoffs]
    reference = {
        "made_by": f"benchmarks/llamafactory/encodings.py with llamafactory {version('llamafactory')}",
        "tokenizer": {"model": TOKENIZER.name, "sha256": hashlib.sha256((TOKENIZER / "tokenizer.json").read_bytes()).hexdigest()},
        "cases": cases,
    }
    lines = json.dumps(reference, ensure_ascii=False, separators=(",", ":")).replace('{"template"', '\n{"template"')
    (FOLDER / "encodings.json").write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
