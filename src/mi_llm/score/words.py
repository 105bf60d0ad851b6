"""Cutting Chinese text into words exactly as jieba does, many texts at once; every ROUGE score starts here.

The dictionary and the probabilities are jieba's own, read from the installed package; only the search over them is written again.
The likeliest path of dictionary words is found for all runs of characters together, with one step of array arithmetic for each
place in a run; runs of single characters that the dictionary does not list go through a Viterbi pass with back pointers. Sums
are taken in jieba's order, so that even ties fall as they do there; a test compares the words with `jieba.cut`.
"""

import logging
import math
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

import jieba
import numpy as np
from jieba import finalseg
from numpy.typing import NDArray

jieba.setLogLevel(logging.WARNING)
START, TRANSITION, EMISSION = finalseg.start_P, finalseg.trans_P, finalseg.emit_P

PIECE = re.compile(r"[\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+|\r\n|.", re.DOTALL)  # what jieba cuts as one, or passes on by character
PART = re.compile(r"[\u4E00-\u9FD5]+|[a-zA-Z0-9]+(?:\.\d+)?%?|[^\u4E00-\u9FD5a-zA-Z0-9]+")  # of a run that the dictionary lacks
LETTER = re.compile("[\u4e00-\u9fd5]")
NEVER = -3.14e100  # jieba's logarithm of zero
SHORT = 6  # characters
STATES = "BEMS"  # a character begins a word, ends one, is in its middle, or is one by itself
CODES = 1 << 16  # characters of a run are below
BITS = 21  # of the table's size: a quarter of its slots are taken
Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]


class Lexicon(NamedTuple):
    """jieba's dictionary as a trie: a node is a beginning of words, numbered from 1.

    `first` gives the node of a character; `keys` and `nodes` are a hash table (open addressing) from node and next character to
    the node of both; `weights` are the words' log-probabilities, -inf for what only begins one; `unknown` is that of a character
    which begins none. `emission` holds the hidden Markov model's log-probabilities of a character by state.
    """

    first: Integers
    keys: Integers
    nodes: Integers
    weights: Numbers
    unknown: float
    emission: dict[str, tuple[float, ...]]


@cache
def lexicon() -> Lexicon:
    """Load jieba's dictionary (a second or two, once a process)."""
    jieba.initialize()
    counts, total = jieba.dt.FREQ, math.log(jieba.dt.total)
    logarithms = {count: math.log(count) - total if count else -math.inf for count in set(counts.values())}
    weights = np.array([-math.inf, *map(logarithms.__getitem__, counts.values())])
    numbers = dict(zip(counts, range(1, len(counts) + 1), strict=True))  # every beginning of a word is an entry, too
    first = np.zeros(CODES, dtype=np.int64)
    before, character, after = [], [], []
    for beginning, number in numbers.items():
        code = ord(beginning[-1])
        if code < CODES and len(beginning) == 1:
            first[code] = number
        elif code < CODES:
            before.append(numbers[beginning[:-1]])
            character.append(code)
            after.append(number)
    keys, nodes = table(np.array(before) * CODES + np.array(character), np.array(after))
    characters = {character for state in STATES for character in EMISSION[state]}
    emission = {character: tuple(EMISSION[state].get(character, NEVER) for state in STATES) for character in characters}
    return Lexicon(first, keys, nodes, weights, -total, emission)


def slots(keys: Integers) -> Integers:
    """Where the search for a key begins in the table: multiplicative hashing (Knuth, vol. 3, section 6.4)."""
    return ((keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - BITS)).astype(np.int64)


def table(keys: Integers, nodes: Integers) -> tuple[Integers, Integers]:
    """A hash table of different keys, none 0, as two arrays; a taken slot sends a key on to the next."""
    places, values = np.zeros(1 << BITS, dtype=np.int64), np.zeros(1 << BITS, dtype=np.int64)
    slot = slots(keys)
    while len(keys):
        free = places[slot] == 0
        places[slot[free]] = keys[free]  # of several for one slot, one stays
        put = places[slot] == keys
        values[slot[put]] = nodes[put]
        keys, nodes, slot = keys[~put], nodes[~put], (slot[~put] + 1) % len(places)
    return places, values


def following(nodes: Integers, codes: Integers) -> Integers:
    """The node that each node and the character after it lead to; 0 for none."""
    known = lexicon()
    keys = nodes * CODES + codes
    found = np.zeros(len(keys), dtype=np.int64)
    open_, slot = np.arange(len(keys)), slots(keys)
    while len(open_):
        there = known.keys[slot]
        hit = there == keys[open_]
        found[open_[hit]] = known.nodes[slot[hit]]
        going = ~hit & (there != 0)
        open_, slot = open_[going], (slot[going] + 1) % len(known.keys)
    return found


def cut(text: str) -> list[str]:
    """The words of a text, white space among them, equal to `list(jieba.cut(text))`."""
    return cut_all([text])[0]


def cut_all(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text; so many texts at once as memory holds some hundred bytes for each of their characters."""
    pieces = [PIECE.findall(text) for text in texts]
    runs = [piece for of_text in pieces for piece in of_text if len(piece) > 1 and piece != "\r\n"]
    ends = likeliest_ends(runs)
    begin = 0
    found = []
    for of_text in pieces:
        words: list[str] = []
        for piece in of_text:
            if len(piece) == 1 or piece == "\r\n":
                words.append(piece)
            else:
                words += cut_run(piece, ends, begin)
                begin += len(piece) + 1
        found.append(words)
    return found


def likeliest_ends(runs: Sequence[str]) -> list[int]:
    """For each place in the runs, put together with one place between, where the likeliest path's first word ends.

    The likelihood of a path is that of its first word plus that of the path from the word's end, found from the runs' ends
    backwards, for all runs in step; of equal ones the longer first word counts.
    """
    codes = np.frombuffer("\0".join([*runs, ""]).encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    lengths = np.array([*map(len, runs)], dtype=np.int64)
    stops = np.cumsum(lengths + 1) - 1  # the places between
    single, words = listed_words(codes)
    steps = np.repeat(stops, lengths + 1)[words.places] - words.places  # how far from its run's end a word begins
    order = np.lexsort((words.sizes, steps))
    places, sizes, weights, steps = words.places[order], words.sizes[order], words.weights[order], steps[order]
    firsts = np.flatnonzero(np.diff(steps, prepend=-1) | np.diff(sizes, prepend=-1))  # of words of one step and size
    groups = zip(steps[firsts].tolist(), sizes[firsts].tolist(), pairwise([*firsts.tolist(), len(steps)]), strict=True)
    group = next(groups, None)
    likelihoods, ends = np.zeros(len(codes)), np.arange(1, len(codes) + 1)
    ordered = stops[np.argsort(-lengths, kind="stable")]
    running = np.searchsorted(np.sort(-lengths), -np.arange(1, lengths.max(initial=0) + 1), side="right")
    for step, count in enumerate(running.tolist(), 1):
        here = ordered[:count] - step  # in every run that is so long
        likelihoods[here] = single[here] + likelihoods[here + 1]
        while group is not None and group[0] == step:
            _, size, (first, last) = group
            begins = places[first:last]
            found = weights[first:last] + likelihoods[begins + size]
            better = found >= likelihoods[begins]
            likelihoods[begins[better]] = found[better]
            ends[begins[better]] = begins[better] + size
            group = next(groups, None)
    listed: list[int] = ends.tolist()
    return listed


class Words(NamedTuple):
    """Words of two and more characters that begin at the places of a text: where, how long, their log-probabilities."""

    places: Integers
    sizes: Integers
    weights: Numbers


def listed_words(codes: Integers) -> tuple[Numbers, Words]:
    """The dictionary's words in a text, given as codes: the log-probability of each character by itself, and the longer words.

    A character that the dictionary lists only as the beginning of words counts as one itself where none of these follows.
    """
    known = lexicon()
    places = np.flatnonzero(known.first[codes])
    nodes = known.first[codes[places]]
    single = np.full(len(codes), -math.inf)
    single[places] = known.weights[nodes]
    found = [Words(places[:0], places[:0], single[:0])]
    size = 1
    while len(places):
        nodes = following(nodes, codes[places + size])
        places, nodes = places[nodes > 0], nodes[nodes > 0]
        size += 1
        weights = known.weights[nodes]
        words = np.isfinite(weights)
        found.append(Words(places[words], np.full(int(words.sum()), size), weights[words]))
    longer = Words(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    alone = np.isinf(single)
    alone[longer.places] = False
    single[alone] = known.unknown
    return single, longer


def cut_run(run: str, ends: Sequence[int], begin: int) -> list[str]:
    """Cut a run of ideographs, letters and digits along the path that `ends` gives, counted from `begin`."""
    words: list[str] = []
    start = single = 0  # from `single` on, only single characters were found
    while start < len(run):
        end = ends[begin + start] - begin
        if end - start > 1:
            if single < start:
                words += singles(run[single:start])
            words.append(run[start:end])
            single = end
        start = end
    if single < start:
        words += singles(run[single:])
    return words


def singles(run: str) -> Sequence[str]:
    """Cut neighbors that the dictionary left as single characters: by the hidden Markov model, unless it lists them together."""
    if len(run) == 1:
        return run
    return short_singles(run) if len(run) <= SHORT else cut_singles(run)


def cut_singles(run: str) -> tuple[str, ...]:
    """The work of `singles`."""
    if jieba.dt.FREQ.get(run):
        return tuple(run)
    words: list[str] = []
    for part in PART.findall(run):
        words += viterbi(part) if LETTER.match(part) else [part]
    return tuple(words)


short_singles = lru_cache(maxsize=1 << 16)(cut_singles)  # these come again and again: 我会, 你的, …


def viterbi(run: str) -> list[str]:
    """Cut a run of ideographs along the likeliest states; of equals, the letter that comes last, as jieba's tuples compare."""
    emission, unseen = lexicon().emission, (NEVER,) * 4
    b, e, m, s = (START[state] + found for state, found in zip(STATES, emission.get(run[0], unseen), strict=True))
    before: list[str] = []  # for each later character the best states before B, E, M and S
    for character in run[1:]:
        to_b, to_e, to_m, to_s = emission.get(character, unseen)
        eb, sb = e + TRANSITION["E"]["B"] + to_b, s + TRANSITION["S"]["B"] + to_b
        be, me = b + TRANSITION["B"]["E"] + to_e, m + TRANSITION["M"]["E"] + to_e
        bm, mm = b + TRANSITION["B"]["M"] + to_m, m + TRANSITION["M"]["M"] + to_m
        es, ss = e + TRANSITION["E"]["S"] + to_s, s + TRANSITION["S"]["S"] + to_s
        before.append("".join(("ES"[sb >= eb], "BM"[me >= be], "BM"[mm >= bm], "ES"[ss >= es])))
        b, e, m, s = max(sb, eb), max(me, be), max(mm, bm), max(ss, es)
    states = ["ES"[s >= e]]
    for choices in reversed(before):
        states.append(choices[STATES.index(states[-1])])
    words, begin = [], 0
    for place, state in enumerate(reversed(states)):
        if state == "B":
            begin = place
        elif state == "E":
            words.append(run[begin : place + 1])
        elif state == "S":
            words.append(run[place])
    return words
