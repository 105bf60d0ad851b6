"""How similar a reply is to its reference: the paper's measure, which is LLaMA-Factory's metric, for texts of any length.

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
PAYS = 200_000  # characters per process: with fewer, starting a process takes longer than it saves
BREAKS = ((re.compile(r"([。！？?])([^”’])"), r"\1\n\2"), (re.compile(r"(\.{6})([^”’])"), r"\1\n\2"))  # rouge_chinese's sentences
Pairs = list[tuple[str, str]]


class Text(NamedTuple):
    """A text prepared for comparison: the text, its words in order, its different words and pairs of neighboring words."""

    text: str
    words: list[str]
    vocabulary: set[str]
    pairs: set[tuple[str, str]]


def ready(text: str) -> Text:
    """Prepare a text, once for all the texts that it is compared with."""
    words = rouge_words(text, list(jieba.cut(text)))
    return Text(text, words, set(words), set(pairwise(words)))


def rouge_words(text: str, words: list[str]) -> list[str]:
    """The words that rouge_chinese sees: white space is dropped, but a sentence of white space only counts as one empty word."""
    blanks = text.split()
    if not blanks:
        return []
    if blanks == [text] and "......" not in text:
        return words  # the rest would change nothing
    spaced = " ".join(words)
    for pattern, broken in BREAKS:
        spaced = pattern.sub(broken, spaced)
    return [word for sentence in spaced.rstrip().split("\n") if sentence for word in sentence.split() or [""]]


def f_measure(common: int, reply_count: int, reference_count: int) -> float:
    """F of precision and recall as rouge_chinese rounds it; 0 where a side is empty."""
    if not reply_count or not reference_count:
        return 0.0
    precision, recall = common / reply_count, common / reference_count
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a bit for each item of `first` (Crochemore et al. 2001, Hyyrö 2004).

    The length grows by one at each zero bit. `first` is processed in blocks, and each step carries a bit over from one block to
    the next, so that memory grows with the lengths and not with their product.
    """
    carries = bytearray(len(second))
    length = 0
    for begin in range(0, len(first), BLOCK):
        block = first[begin : begin + BLOCK]
        size = len(block)
        masks: dict[str, int] = {}
        for index, item in enumerate(block):
            masks[item] = masks.get(item, 0) | 1 << index
        row = full = (1 << size) - 1
        for step, item in enumerate(second):
            mask, carry = masks.get(item, 0), carries[step]
            if mask or carry:
                matched = row & mask
                total = row + matched + carry
                row = (total | (row - matched)) & full
                carries[step] = total >> size
        length += size - row.bit_count()
    return length


def matched_ngrams(reply: str, reference: str) -> list[int]:
    """How many of the reply's n-grams of characters the reference matches, for n from 1 to 4; each reference n-gram at most once.

    An n-gram can match only where its first n - 1 characters do: each order looks only where the order before matched.
    """
    matches = [0] * ORDER
    reply_starts: Sequence[int] = range(len(reply))
    reference_starts: Sequence[int] = range(len(reference))
    reply_grams, reference_grams = list(reply), list(reference)
    for order in range(1, ORDER + 1):
        distinct = set(reply_grams)
        common = distinct.intersection(reference_grams)
        if not common:
            break
        if len(distinct) == len(reply_grams):
            matches[order - 1] = len(common)
        else:
            counts, limits = Counter(reply_grams), Counter(reference_grams)
            matches[order - 1] = sum([min(counts[gram], limits[gram]) for gram in common])
        reply_starts, reply_grams = following(reply, order, reply_starts, reply_grams, common)
        reference_starts, reference_grams = following(reference, order, reference_starts, reference_grams, common)
    return matches


def following(text: str, order: int, starts: Sequence[int], grams: list[str], common: set[str]) -> tuple[list[int], list[str]]:
    """Where in a text common n-grams begin that another character follows, and these longer n-grams."""
    kept = [start for start, gram in zip(starts, grams, strict=True) if gram in common]
    if kept and kept[-1] + order == len(text):
        kept.pop()
    order += 1
    return kept, [text[start : start + order] for start in kept]


def bleu(reply: str, reference: str) -> float:
    """BLEU-4 of characters, 0 to 1; as in NLTK's smoothing method 3, the k-th order without a match counts 1 / 2^k matches."""
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
    """`sample_scores` of each reply and its reference, in order.

    Pairs with the same reference are compared together, so that a text is cut once for many pairs. Large inputs are shared
    out over all processor cores, or `processes` of them (new interpreters, so a program that calls this must guard its entry
    point); the result does not depend on the number of processes.
    """
    first: dict[str, int] = {}
    for index, reference in enumerate(references):
        first.setdefault(reference, index)
    order = sorted(range(len(references)), key=lambda index: first[references[index]])
    pairs = [(replies[index], references[index]) for index in order]
    if processes is None:
        processes = min(cores(), sum(len(reply) + len(reference) for reply, reference in pairs) // PAYS)
    ordered_scores = [scores for part in compare_all(list(chunks(pairs)), processes) for scores in part]
    scores_by_index = dict(zip(order, ordered_scores, strict=True))
    return [dict(zip(LLAMA_FACTORY, scores_by_index[index], strict=True)) for index in range(len(pairs))]


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
    """The scores of each part, in order; workers take parts from the front while this process takes them from the end."""
    with tqdm(total=sum(map(len, parts)), desc="compare", unit="pair") as bar:
        scores_by_part: dict[int, list[tuple[float, ...]]] = {}
        if processes < 2:
            for index, part in enumerate(parts):
                scores_by_part[index] = compare_chunk(part)
                bar.update(len(part))
            return list(scores_by_part.values())
        with ProcessPoolExecutor(processes - 1, get_context("spawn"), begin_process) as pool:
            futures = [pool.submit(compare_chunk, part) for part in parts]
            try:
                for index in reversed(range(len(parts))):
                    if not futures[index].cancel():  # a worker has it, or is about to
                        break
                    scores_by_part[index] = compare_chunk(parts[index])
                    bar.update(len(parts[index]))
                for index, part in enumerate(parts[: len(parts) - len(scores_by_part)]):
                    scores_by_part[index] = futures[index].result()
                    bar.update(len(part))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # interrupted: do not wait for results that nobody needs
                raise
        return [scores_by_part[index] for index in range(len(parts))]


def begin_process() -> None:
    """Prepare a worker: load the dictionary, ignore Ctrl-C (the parent handles it), and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jieba.initialize()
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
