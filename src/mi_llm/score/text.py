"""How like the reference a reply is: the paper's measure, which is LLaMA-Factory's metric, for texts of any length.

Sample by sample, as LLaMA-Factory 0.9.5 does (`train/sft/metric.py`): words are cut by jieba and scored as by rouge_chinese (F of
ROUGE-1, -2 and -L; 0 when either side has no word); BLEU-4 is NLTK's sentence BLEU on characters, smoothing method 3. Each is
multiplied by 100, rounded to 4 decimals, and averaged over the samples. Tests compare every number with those libraries.
"""

import logging
import math
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from multiprocessing import connection, get_context, parent_process
from typing import NamedTuple

import jieba
from tqdm import tqdm

jieba.setLogLevel(logging.WARNING)
LLAMA_FACTORY = ("bleu_4", "rouge_1", "rouge_2", "rouge_l")
SIGNATURES = {
    "bleu_4": "llama_factory|v:0.9.5|level:sentence|tok:char|smooth:nltk-method3|mean",
    **{
        name: f"llama_factory|v:0.9.5|level:sentence|tok:jieba-{version('jieba')}|rouge_chinese-1.0.3|f|mean"
        for name in ("rouge_1", "rouge_2", "rouge_l")
    },
}
ORDER = 4  # of BLEU
BLOCK = 4096  # reference words that one integer of the common subsequence holds
CHUNK = 50_000  # characters that are compared at a time
PAYS = 200_000  # characters from which on a further process takes less time than it needs to start
BREAKS = ((re.compile(r"([。！？?])([^”’])"), r"\1\n\2"), (re.compile(r"(\.{6})([^”’])"), r"\1\n\2"))  # rouge_chinese's sentences
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Score:
    """A number and the signature of the settings that made it."""

    value: float
    signature: str


class Text(NamedTuple):
    """A text made ready to be compared: as it is, its words in order, and the different words and pairs of neighbors in it."""

    text: str
    words: list[str]
    vocabulary: set[str]
    pairs: set[tuple[str, str]]


def ready(text: str) -> Text:
    """Cut a text; once for all that it is compared with."""
    words = rouge_words(text, list(jieba.cut(text)))
    return Text(text, words, set(words), set(pairwise(words)))


def rouge_words(text: str, words: list[str]) -> list[str]:
    """The words that rouge_chinese sees: white space is dropped, but a sentence of nothing else counts as one empty word."""
    blanks = text.split()
    if not blanks:
        return []
    if blanks == [text] and "......" not in text:
        return words  # the rest would change nothing
    spaced = " ".join(words)
    for pattern, broken in BREAKS:
        spaced = pattern.sub(broken, spaced)
    return [word for sentence in spaced.rstrip().split("\n") if sentence for word in sentence.split() or [""]]


def f_measure(common: int, said: int, wanted: int) -> float:
    """F of precision and recall as rouge_chinese rounds it; 0 where a side is empty."""
    if not said or not wanted:
        return 0.0
    precision, recall = common / said, common / wanted
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a bit for each item of `first` (Crochemore et al. 2001, Hyyrö 2004).

    A zero bit is a place where the length grows. `first` is taken in blocks, with what each step carries over from one block to
    the next, so that memory grows with the lengths and not with their product.
    """
    carries = bytearray(len(second))
    length = 0
    for begin in range(0, len(first), BLOCK):
        block = first[begin : begin + BLOCK]
        size = len(block)
        places: dict[str, int] = {}
        for place, item in enumerate(block):
            places[item] = places.get(item, 0) | 1 << place
        row = full = (1 << size) - 1
        for step, item in enumerate(second):
            mask, carry = places.get(item, 0), carries[step]
            if mask or carry:
                matched = row & mask
                total = row + matched + carry
                row = (total | (row - matched)) & full
                carries[step] = total >> size
        length += size - row.bit_count()
    return length


def matched_ngrams(reply: str, reference: str) -> list[int]:
    """How many of the reply's n-grams of characters the reference matches, for n from 1 to 4; each of its own at most once.

    An n-gram can match only where its first n - 1 characters do: each order looks only where the one before found something.
    """
    found = [0] * ORDER
    said_at: Sequence[int] = range(len(reply))
    wanted_at: Sequence[int] = range(len(reference))
    said, wanted = list(reply), list(reference)
    for order in range(1, ORDER + 1):
        distinct = set(said)
        common = distinct.intersection(wanted)
        if not common:
            break
        if len(distinct) == len(said):
            found[order - 1] = len(common)
        else:
            counts, limits = Counter(said), Counter(wanted)
            found[order - 1] = sum([min(counts[gram], limits[gram]) for gram in common])
        said_at, said = following(reply, order, said_at, said, common)
        wanted_at, wanted = following(reference, order, wanted_at, wanted, common)
    return found


def following(text: str, order: int, places: Sequence[int], grams: list[str], common: set[str]) -> tuple[list[int], list[str]]:
    """Where in a text common n-grams begin that another character follows, and these longer n-grams."""
    kept = [place for place, gram in zip(places, grams, strict=True) if gram in common]
    if kept and kept[-1] + order == len(text):
        kept.pop()
    order += 1
    return kept, [text[place : place + order] for place in kept]


def bleu(reply: str, reference: str) -> float:
    """BLEU-4 of characters, 0 to 1; as in NLTK's smoothing method 3, the k-th order without a match has 1 / 2^k of one."""
    matched = matched_ngrams(reply, reference)
    if not matched[0]:
        return 0.0
    logarithms, without = [], 0
    for order, count in enumerate(matched):
        possible = max(1, len(reply) - order)
        if not count:
            without += 1
        logarithms.append(0.25 * math.log(count / possible if count else 1 / (2**without * possible)))
    brevity = 1.0 if len(reply) > len(reference) else math.exp(1 - len(reference) / len(reply))
    return brevity * math.exp(math.fsum(logarithms))


def compared(reply: Text, reference: Text) -> tuple[float, ...]:
    """The four measures of `LLAMA_FACTORY`, each 0 to 100 with 4 decimals."""
    shares = (
        bleu(reply.text, reference.text),
        f_measure(len(reply.vocabulary & reference.vocabulary), len(reply.vocabulary), len(reference.vocabulary)),
        f_measure(len(reply.pairs & reference.pairs), len(reply.pairs), len(reference.pairs)),
        f_measure(common_subsequence(reference.words, reply.words), len(reply.words), len(reference.words)),
    )
    return tuple(round(share * 100, 4) for share in shares)


def sample_scores(reply: str, reference: str) -> dict[str, float]:
    """BLEU-4, ROUGE-1, ROUGE-2 and ROUGE-L of one reply, each 0 to 100 with 4 decimals, as LLaMA-Factory computes them."""
    return dict(zip(LLAMA_FACTORY, compared(ready(reply), ready(reference)), strict=True))


def all_scores(replies: Sequence[str], references: Sequence[str], processes: int | None = None) -> list[dict[str, float]]:
    """`sample_scores` of each reply with the reference at its place, in order.

    Pairs with one reference are taken together, so that a text is cut once among many pairs. Large inputs are shared out over
    all processor cores, or `processes` of them (new interpreters, so a program that calls this must guard its entry point); the
    result does not depend on how many.
    """
    first: dict[str, int] = {}
    for place, reference in enumerate(references):
        first.setdefault(reference, place)
    places = sorted(range(len(references)), key=lambda place: first[references[place]])
    pairs = [(replies[place], references[place]) for place in places]
    if processes is None:
        processes = min(cores(), sum(len(reply) + len(reference) for reply, reference in pairs) // PAYS)
    found = [scores for part in compare_all(list(chunks(pairs)), processes) for scores in part]
    placed = dict(zip(places, found, strict=True))
    return [dict(zip(LLAMA_FACTORY, placed[place], strict=True)) for place in range(len(pairs))]


def chunks(pairs: Pairs) -> Iterator[Pairs]:
    """Cut a list of pairs into parts of about `CHUNK` characters."""
    part: Pairs = []
    size = 0
    for pair in pairs:
        part.append(pair)
        size += len(pair[0]) + len(pair[1])
        if size >= CHUNK:
            yield part
            part, size = [], 0
    if part:
        yield part


def compare_chunk(pairs: Pairs) -> list[tuple[float, ...]]:
    """The scores of some pairs; a text that occurs twice among them is cut once."""
    known = {text: ready(text) for text in dict.fromkeys(text for pair in pairs for text in pair)}
    return [compared(known[reply], known[reference]) for reply, reference in pairs]


def compare_all(parts: list[Pairs], processes: int) -> list[list[tuple[float, ...]]]:
    """The scores of each part, in order; helpers take parts from the front, and this process from the end meanwhile."""
    with tqdm(total=sum(map(len, parts)), desc="compare", unit="pair") as bar:
        found: dict[int, list[tuple[float, ...]]] = {}
        if processes < 2:
            for place, part in enumerate(parts):
                found[place] = compare_chunk(part)
                bar.update(len(part))
            return list(found.values())
        with ProcessPoolExecutor(processes - 1, get_context("spawn"), begin_process) as pool:
            given = [pool.submit(compare_chunk, part) for part in parts]
            try:
                for place in reversed(range(len(parts))):
                    if not given[place].cancel():  # a helper has it, or is about to
                        break
                    found[place] = compare_chunk(parts[place])
                    bar.update(len(parts[place]))
                for place, part in enumerate(parts[: len(parts) - len(found)]):
                    found[place] = given[place].result()
                    bar.update(len(part))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # interrupted: do not wait for what nobody wants
                raise
        return [found[place] for place in range(len(parts))]


def begin_process() -> None:
    """Load the dictionary; leave an interruption to the process that started this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jieba.initialize()
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
