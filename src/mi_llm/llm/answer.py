"""What a language model's answer says: its text without thoughts, the JSON in it, how it ended, what it used.

A server can send anything. Whatever cannot be read raises ValueError, with the reason, and nothing else.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

DEEPEST = 100  # levels of JSON
STARTS = 100  # brackets at which JSON between prose is looked for
MOST_TOKENS = 10**9  # of one answer; more is no count
THOUGHTS = re.compile(r"(<(?:think|thinking|thought|seed:think)>|\[THINK\]|◁think▷)|</(?:think|thinking|thought|seed:think)>"
                      r"|\[/THINK\]|◁/think▷", re.IGNORECASE)  # fmt: skip
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
LENGTH = ("length", "max_tokens", "model_length")
FAILED = ("content_filter", "safety", "sensitive", "tool_calls", "tool_use", "function_call")


def finite(digits: str) -> float | None:
    """A JSON number; None for what JSON does not have: NaN, infinities, and numbers that become one."""
    value = float(digits)
    return value if math.isfinite(value) else None


DECODER = json.JSONDecoder(parse_float=finite, parse_constant=lambda _: None)


def loads(text: str, deepest: int = DEEPEST) -> Any:
    """A JSON value that can be written again, of at most so many levels. Raises ValueError, with the reason."""
    try:
        value = DECODER.decode(text)
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    except ValueError:
        raise ValueError("not JSON (a number is too long)") from None
    return shallow(value, deepest)


def shallow(value: Any, deepest: int = DEEPEST) -> Any:
    """The value, if it is not nested too deeply: what reads and writes it is recursive. Raises ValueError."""
    level = [value]
    for _ in range(deepest):
        level = [child for item in level for child in children(item)]
        if not level:
            return value
    raise ValueError("not JSON (nested too deeply)")


def children(value: Any) -> Iterator[Any]:
    """What a JSON list or object holds, its names too."""
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def without_thoughts(text: str) -> str:
    """A model's words without what it thought aloud: `<think>…</think>`, also where the opening or the closing tag is missing."""
    if not THOUGHTS.search(text):
        return text
    said, thinking, end = [], False, 0
    for tag in THOUGHTS.finditer(text):
        if not thinking:
            said.append(text[end : tag.start()])
        if not tag[1] and not thinking:  # some chat templates write the opening tag themselves
            said.clear()
        thinking, end = bool(tag[1]), tag.end()
    return "".join([*said, "" if thinking else text[end:]]).strip()


def parsed(text: str) -> Any:
    """The JSON value of an answer's text, perhaps in a code fence or between prose. Raises ValueError, with the reason."""
    try:
        value = loads(text.strip())
    except ValueError:
        json_values = list(embedded(text))
        if not json_values:
            raise
        value = shallow(max(json_values, key=lambda part: part[0])[1])
    if any(UNPRINTABLE.search(part) for part in strings(value)):
        raise ValueError("a control character, or half of a character, in a text")
    return value


def embedded(text: str) -> Iterator[tuple[int, Any]]:
    """The JSON lists and objects between other text, each with its length."""
    end = 0
    for _ in range(STARTS):
        start = re.compile(r"[\[{]").search(text, end)
        if start is None:
            return
        try:
            value, end = DECODER.raw_decode(text, start.start())
            yield end - start.start(), value
        except (ValueError, RecursionError):
            end = start.end()


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    for child in children(value):
        yield from strings(child)


def finish_of(choice: dict[str, Any]) -> str:
    """How an answer ended: `stop`, `length`, or what made it fail. Servers have many words for `stop`."""
    word = str(choice.get("finish_reason") or "").lower()
    return "length" if word in LENGTH else word if word in FAILED else "stop"


def tokens_of(usage: Any) -> tuple[int | None, int | None]:
    """The tokens sent and received, by what a server says; None for what is no count."""
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    sent, received = (count if type(count) is int and 0 <= count <= MOST_TOKENS else None for count in counts)
    return sent, received
