"""`mi-llm tool score`: how similar replies are to their references, with intervals (paper, Automatic Evaluation).

Reads replies and references as people have them: a text with a reply per line, JSON Lines, or LLaMA-Factory's
`generated_predictions.jsonl`, which holds both. Writes nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.language.language import DEFAULT
from mi_llm.problem import Problem
from mi_llm.score.libraries import pooled_scores
from mi_llm.score.metrics import families, main_scores, signatures
from mi_llm.score.score import estimates
from mi_llm.statistics import DialogBootstrap, why_none

REPLY = ("predict", "reply", "text")  # what files call a reply, and a reference: LLaMA-Factory, people, this study's stages
REFERENCE = ("label", "reference", "counselor", "text")
ROUND, DIALOG = ("round", "id"), ("dialog",)


@dataclass(frozen=True)
class Pairs:
    """Replies and their references, in one order; `dialogs` names the dialog of each pair, and is empty where no file does."""

    replies: Sequence[str]
    references: Sequence[str]
    dialogs: Sequence[str] = ()


def score_replies(
    replies: Sequence[str],
    references: Sequence[str],
    dialogs: Sequence[str] = (),
    *,
    language: str = DEFAULT,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 1,
) -> pd.DataFrame:
    """One row per score: metric, mean (0 to 100), lo, hi, note (why there is no interval), signature; all replies together.

    In Chinese the paper's four (LLaMA-Factory's BLEU-4 of characters and ROUGE of jieba's words), sacreBLEU (`zh`), chrF, and
    rouge-score of characters. LLaMA-Factory's measures are made for Chinese, and its BLEU of letters says little of English,
    where the four are sacreBLEU of each reply (`13a` words) and rouge-score of stems; beside them stand sacreBLEU of all
    replies and chrF. `language` is one of `src/mi_llm/language/`.

    The interval is the bootstrap-t's over dialogs, that of sacreBLEU and chrF the jackknife's (docs/statistics.md); without
    `dialogs` every reply counts as one. Fewer than five dialogs have none (NaN), and neither have too like ones. Raises Problem
    for no reply, or for lists of different lengths.
    """
    if not len(replies) == len(references) == len(dialogs or replies) or not replies:
        found = f"{len(replies)} replies, {len(references)} references, {len(dialogs)} names of dialogs"
        raise Problem("the replies", found, "one reference per reply, and at least one", "give lists of one length")
    pooled = pooled_scores(replies, references, language)
    beside, main = families(language), signatures(language)
    samples = pd.concat(
        [
            pd.DataFrame(main_scores(replies, references, language)),
            *(pd.DataFrame(family.of_rounds(replies, references)) for family in beside),
        ],
        axis=1,
    )
    clusters = list(dialogs) or [str(number) for number in range(len(replies))]
    table = pd.DataFrame(estimates(samples, pooled, beside, DialogBootstrap(clusters, resamples, confidence, seed), main))
    why = why_none(len(set(clusters)), "dialogs" if dialogs else "replies")
    table.insert(table.columns.get_loc("signature"), "note", [why if missing else "" for missing in table["lo"].isna()])
    return table


def read_pairs(replies: Path, references: Path | None = None) -> Pairs:
    """Read replies and their references from two files, or both from one, such as `generated_predictions.jsonl`.

    A text file has a reply per line, its line breaks written as `\\n`; JSON Lines have objects or strings. Where both files name
    the rounds (`round` or `id`), replies are found by these names, else by their order. Raises Problem with the line that is
    wrong, or if one file lacks what the other has.
    """
    answered = records(replies)
    if references is None:
        return Pairs(texts(answered, REPLY, replies), texts(answered, REFERENCE[:-1], replies), names(answered, DIALOG))
    expected = records(references)
    given, asked = names(answered, ROUND), names(expected, ROUND)
    if given and asked:
        answered = ordered(answered, given, asked, replies)
    if len(answered) != len(expected):
        found = f"{len(answered)} replies, and {len(expected)} references in {references}"
        raise Problem(str(replies), found, "one reference per reply, in the same order", "complete one of the files")
    dialogs = names(expected, DIALOG) or names(answered, DIALOG)
    return Pairs(texts(answered, REPLY, replies), texts(expected, REFERENCE, references), dialogs)


def records(path: Path) -> list[dict[str, Any]]:
    """The entries of a file: the objects of JSON Lines; a string, or a line of a text, is an object with `text` alone."""
    content = storage.read_text(path).replace("\r\n", "\n").removesuffix("\n")
    if not content.strip():
        raise Problem(str(path), "empty", "a reply per line, or JSON Lines", "give the file with the replies")
    lines = content.split("\n")
    if not (path.suffix.lower() in (".jsonl", ".json") or content.lstrip().startswith("{")):
        return [{"text": line.replace("\\n", "\n")} for line in lines]
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            entry = storage.parse_json(line, path, "JSON Lines: an object or a string per line", number)
            if not isinstance(entry, dict | str):
                found = f"a JSON {type(entry).__name__}"
                raise Problem(f"{path}, line {number}", found, "an object or a string", "write one reply per line")
            entries.append({"text": entry} if isinstance(entry, str) else entry)
    return entries


def texts(entries: Sequence[dict[str, Any]], keys: Sequence[str], path: Path) -> list[str]:
    """The text of each entry: under the first of these keys that the first entry has."""
    key = next((key for key in keys if key in entries[0]), None)
    if key is None:
        found = f"the keys {', '.join(map(str, entries[0]))}"
        remedy = "rename the key" if keys is REPLY else "rename the key, or name a second file with the references"
        raise Problem(f"{path}, entry 1", found, f"one of {', '.join(keys)}", remedy)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry.get(key), str):
            found = f"{key}: {json.dumps(entry.get(key), ensure_ascii=False)[:60]}"
            raise Problem(f"{path}, entry {number}", found, f"{key}: a text", "correct the entry")
    return [entry[key] for entry in entries]


def names(entries: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    """What every entry has under the first of these keys; nothing if some entry has none."""
    key = next((key for key in keys if all(entry.get(key) is not None for entry in entries)), None)
    return [str(entry[key]) for entry in entries] if key else []


def ordered(entries: list[dict[str, Any]], given: list[str], asked: list[str], path: Path) -> list[dict[str, Any]]:
    """The replies in the references' order, by the names of their rounds."""
    by_name = dict(zip(given, entries, strict=True))
    twice = next((name for name in given if given.count(name) > 1), None) if len(by_name) < len(given) else None
    missing = next((name for name in asked if name not in by_name), None)
    if twice or missing or len(given) != len(asked):
        found = f"round {twice} twice" if twice else f"no reply to round {missing}" if missing else f"{len(given)} replies"
        raise Problem(str(path), found, f"one reply to each of the {len(asked)} rounds", "complete the file")
    return [by_name[name] for name in asked]
