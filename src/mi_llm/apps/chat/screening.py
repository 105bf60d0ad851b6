"""`mi-llm tool guard`: run the crisis guard over a file, so that fresh sentences are easy to measure.

Reads lines of plain text, or of JSON: `{"id", "messages"}` with a client's messages in order; with `replies` `{"id", "text"}`,
where `messages` may say what the client said before: after danger a doubtful reply is held too.
Prints one result per line and writes nothing.
"""

import json
from pathlib import Path
from typing import Any

from mi_llm import storage
from mi_llm.apps.chat import guard
from mi_llm.problem import Problem


def screening(file: Path, *, replies: bool, as_json: bool) -> None:
    """Print what the guard makes of each line; a line of plain text has its number as id. Raises Problem for broken JSON."""
    for number, line in enumerate(storage.read_text(file).split("\n"), 1):  # no other sign that Unicode calls a line's end
        if not line.strip():
            continue
        name, texts = parsed(line.strip(), f"{file}, line {number}", number)
        if replies:
            faults = guard.faults(texts[-1], in_danger=len(texts) > 1 and guard.look(texts[:-1]).tier != "none")
            result: dict[str, Any] = {"id": name, "held": bool(faults), "faults": list(faults)}
        else:
            danger, at = guard.follow(texts)
            result = {"id": name, "tier": danger.tier, "categories": list(danger.categories), "found_at": at}
        print(json.dumps(result, ensure_ascii=False) if as_json else "\t".join(map(str, result.values())), flush=True)


def parsed(line: str, where: str, number: int) -> tuple[str | int, list[str]]:
    """The id and the texts of a line."""
    if not line.startswith("{"):
        return number, [line]
    try:
        record = json.loads(line)
        texts = record.get("messages", []) + [record[key] for key in ("text", "reply") if key in record]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise Problem(
            where, "no JSON object with texts", 'plain text, {"id", "messages": ["…"]} or {"id", "text": "…"}', "correct the line"
        ) from None
    return record.get("id", number), texts
