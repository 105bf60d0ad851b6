"""Tables 3 to 5: dialog features and topics, recounted from the public files."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mi_llm.audit.evidence import Evidence, without_punctuation
from mi_llm.audit.verdict import Result, because, judged, listed, unknown
from mi_llm.codebook.topics import labels, topic, topic_and_word, words
from mi_llm.dialog import Dialog, volley_lengths
from mi_llm.paper import models
from mi_llm.paper.claims import TABLE_3, Claim, Paper, claims

Labeled = Sequence[Sequence[tuple[str, str]]]  # dialogs of (label, text) messages
OTHER = {"counselor": "client", "client": "counselor"}  # the other of the two heads of Table 3 that could be exchanged
MODELS = {model.table_4: name for name, model in models.tuned().items()}  # as Table 4's claims name them
NINE = "baichuan2-7b"  # the model of whose ten dialogs the workbook has nine
CASES = 3134  # cases of CPsyCounD, by its README
DRAWS = 20_000  # random samples of a permutation test
STRETCH = 3  # rounds in a row with the client longer than the counselor that count as exchanged speakers
TENTH = "the tenth dialog existed"  # in the note on Table 4 where the workbook lacks one dialog; `findings` looks for it


def labeled_features(dialogs: Labeled) -> dict[str, tuple[float, float]]:
    """Mean and population SD of Table 3's three features, by the rule that gives its test row.

    Messages count only where labeled exactly `client` or `counselor`; a round is a client message directly followed by a
    counselor message; characters without punctuation, one message per volley; nothing is merged.
    """
    rounds = [
        sum(before == "client" and after == "counselor" for (before, _), (after, _) in pairwise(dialog)) for dialog in dialogs
    ]
    features = {"rounds": (statistics.fmean(rounds), statistics.pstdev(rounds))}
    for role in ("counselor", "client"):
        lengths = [without_punctuation(text) for dialog in dialogs for label, text in dialog if label == role]
        features[role] = (statistics.fmean(lengths), statistics.pstdev(lengths))
    return features


def labeled(dialogs: Sequence[Dialog]) -> Labeled:
    """Dialogs as a corpus reader gives them, in (label, text) messages."""
    return [[(turn.role, turn.text) for turn in dialog.turns] for dialog in dialogs]


def table_3(evidence: Evidence) -> pd.DataFrame:
    """Table 3 under two rules, where the data is here: columns dataset, rule, dialogs, and mean and SD of each feature.

    `paper`: the rule of `labeled_features`. `ours`: as the readers give the dialogs, labels mapped, volleys merged.
    """
    rows: list[dict[str, Any]] = []
    for name, raw, corpus in (("Test", evidence.published, "release"), (TABLE_3["cpsycound"], evidence.cases, "cpsycound")):
        if raw:
            numbers: dict[str, float] = {"dialogs": len(raw)}
            for feature, (mean, sd) in labeled_features(raw).items():
                numbers |= {f"{feature}_mean": round(mean, 4), f"{feature}_sd": round(sd, 4)}
            rows.append({"dataset": name, "rule": "paper", **numbers})
            read = evidence.metrics("read", corpus)
            rows.append({"dataset": name, "rule": "ours", **{key: read[key] for key in numbers}})
    return pd.DataFrame(rows)


def dialog_features(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 3: the printed number against a recount of the public files by one rule, which the report uses too.

    The rule: characters without punctuation; one message per volley; messages labeled exactly client or counselor (in CPsyCounD,
    lines that begin with a plain label); population SD; a round wherever a counselor message directly follows a client message, so
    a dialog with other labels counts as 0 rounds. It was searched for until it gave the test row: with and without spaces and
    punctuation, by message, round and dialog, population and sample SD, labels exact and mapped. Each number is compared under its
    own head; it is `inconsistent` if its mean or SD has the printed digits under the other role's head only.
    """
    _, dataset, feature = claim.id.split("-")
    sources: dict[str, Callable[[], Labeled]] = {
        TABLE_3["test"]: lambda: evidence.published,
        TABLE_3["cpsycound"]: lambda: evidence.cases,
        TABLE_3["train"]: lambda: labeled(evidence.dialogs("training")),
        TABLE_3["psydtcorpus"]: lambda: labeled(evidence.corpus("psydtcorpus")),
    }
    dialogs = sources[dataset]()
    if not dialogs:
        return unknown("the file was unavailable; see the list of what is missing")
    features = labeled_features(dialogs)
    result = under_heads(claim, feature, features)
    note = f"{len(dialogs)} dialogs, counted by a rule that was searched for (see the method). {result.note}"
    if dataset == TABLE_3["cpsycound"] and result.verdict != "reproduced":
        lacking = CASES - len(dialogs)
        note += f" {lacking} of the {CASES} cases are not in the pinned commit." if lacking else ""
        if feature == "rounds":
            note += (
                f" With them the mean would be at least {features['rounds'][0] * len(dialogs) / CASES:.2f}." if lacking else ""
            )
            result = because(result, "cases")
    return replace(result, note=" ".join(note.split()))


def under_heads(claim: Claim, feature: str, features: dict[str, tuple[float, float]]) -> Result:
    """The verdict on one number of Table 3, given the recounted features, under its own head and under the other role's."""
    mean, sd = features[feature]
    own = judged(claim, mean, sd)
    if own.verdict in ("reproduced", "close") or feature not in OTHER:
        same = claim.sd is not None and claim.sd.shows(sd) and not claim.mean.shows(mean)
        return replace(own, note="The SD equals the printed digits; the mean does not." if same else "")
    other = OTHER[feature]
    other_mean, other_sd = features[other]
    equal = {"mean": claim.mean.shows(other_mean), "SD": claim.sd is not None and claim.sd.shows(other_sd)}
    if not any(equal.values()):
        return own
    there = f"the {other}'s number, {claim.mean.write(other_mean)} ({other_sd:.2f})"
    how = "reproduces as" if all(equal.values()) else f"has the {listed(name for name, same in equal.items() if same)} of"
    note = f"What is printed for the {feature} {how} {there}; the {feature}'s own is {claim.mean.write(mean)} ({sd:.2f})."
    return replace(own, verdict="inconsistent", note=note, cause="swapped")


def tuned(evidence: Evidence, model: str) -> list[Dialog]:
    """The released dialogs of one tuned model."""
    return [dialog for dialog in evidence.simulated if dialog.meta["model"] == model and dialog.meta["arm"] == "tuned"]


def simulated_features(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 4, rows of the three models: the printed number against the released workbook.

    The rule: rounds are counselor turns; all characters count; the mean is pooled over volleys; the SD is the sample SD of the
    dialogs' means. It was searched for until it gave the rows of ChatGLM-4 and Llama-3. Where the workbook lacks one dialog, the
    sizes of the missing one are searched for: 1 to 99 rounds, and with those rounds every number of characters up to 200 a volley.
    """
    _, row, feature = claim.id.split("-")
    dialogs = tuned(evidence, MODELS[row])
    if not dialogs:
        return unknown("the released workbook was unavailable")
    stated = int(claim.n or claim.reported)
    if feature == "n":
        return because(judged(claim, len(dialogs), None, "dialogs in the released workbook"), "ninth")
    mean, sd = volley_lengths(dialogs)[feature]
    note = f"{len(dialogs)} dialogs of the released workbook, counted by a rule that was searched for (see the method)."
    if len(dialogs) == stated - 1:
        rounds = missing_rounds(dialogs, paper[f"T4-{row}-rounds"])
        if rounds is None:
            return because(judged(claim, mean, sd, note), "ninth")
        if feature == "rounds":
            note += f" With one more dialog of {rounds} rounds (searched from 1 to 99), mean and SD equal the printed digits: {TENTH}."
        elif sizes := missing_characters(dialogs, claim, feature, rounds):
            note += f" With one more dialog of {rounds} rounds and {' or '.join(map(str, sizes))} characters, mean and SD equal the printed digits."
        else:
            note += f" No dialog of {rounds} rounds gives both mean and SD."
    return because(judged(claim, mean, sd, note), "ninth")


def missing_rounds(dialogs: Sequence[Dialog], claim: Claim) -> int | None:
    """The rounds of one more dialog with which mean and SD of the rounds have the printed digits; None unless exactly one fits."""
    lengths = [sum(turn.role == "counselor" for turn in dialog.turns) for dialog in dialogs]
    fitting = [
        rounds
        for rounds in range(1, 100)
        if claim.mean.shows(statistics.fmean([*lengths, rounds]))
        and claim.sd is not None
        and claim.sd.shows(statistics.stdev([*lengths, rounds]))
    ]
    return fitting[0] if len(fitting) == 1 else None


def missing_characters(dialogs: Sequence[Dialog], claim: Claim, role: str, rounds: int) -> list[int]:
    """The characters of one role in one more dialog of `rounds` rounds with which mean and SD have the printed digits."""
    lengths = [[len(turn.text) for turn in dialog.turns if turn.role == role] for dialog in dialogs]
    total, volleys = sum(map(sum, lengths)), sum(map(len, lengths))
    means = [statistics.fmean(of_dialog) for of_dialog in lengths]
    return [
        characters
        for characters in range(200 * rounds)
        if claim.mean.shows((total + characters) / (volleys + rounds))
        and claim.sd is not None
        and claim.sd.shows(statistics.stdev([*means, characters / rounds]))
    ]


def exchanged(evidence: Evidence) -> pd.DataFrame:
    """Stretches of the released tuned dialogs where the speakers seem exchanged: columns dialog, first, last (messages, from 1).

    A stretch is `STRETCH` or more rounds in a row in which the client's volley is longer than the counselor's. The rule was made
    after reading: everywhere else, such rounds stand alone.
    """
    rows = []
    for dialog in evidence.simulated:
        if dialog.meta["arm"] != "tuned":
            continue
        longer = [
            index
            for index, (before, after) in enumerate(pairwise(dialog.turns), start=1)
            if (before.role, after.role) == ("client", "counselor") and len(before.text) > len(after.text)
        ]
        for index in longer:
            last = index
            while last + 2 in longer:
                last += 2
            if index - 2 not in longer and (last - index) // 2 + 1 >= STRETCH:
                rows.append({"dialog": dialog.id, "first": index, "last": last + 1})
    return pd.DataFrame(rows, columns=["dialog", "first", "last"])


def unlabeled(evidence: Evidence) -> dict[str, int | float]:
    """How Table 3's rounds of the test dialogs come about: dialogs and samples whose labels are not client and counselor, and others'."""
    labeled_dialogs = [dialog for dialog in evidence.published if {label for label, _ in dialog} == {"client", "counselor"}]
    others = [dialog for dialog in evidence.published if {label for label, _ in dialog} != {"client", "counselor"}]
    mean = labeled_features(evidence.published)["rounds"][0]
    return {
        "others": len(others), "their_samples": sum(len(dialog) // 2 for dialog in others), "labeled": len(labeled_dialogs),
        "labeled_mean": labeled_features(labeled_dialogs)["rounds"][0] if labeled_dialogs else float("nan"), "all_mean": mean,
        "all": len(evidence.published), "rounds": round(mean * len(evidence.published)),
    }  # fmt: skip


def sample_of_transcripts(evidence: Evidence) -> pd.DataFrame:
    """How often a random sample of 30 AnnoMI transcripts is as long as the paper's: columns pool, unit, mean, sd, p_mean, p_sd.

    `p_mean` and `p_sd` are shares of random samples without replacement whose mean or SD is at least the printed one.
    """
    table = evidence.transcripts
    printed = claims()["T4-real-rounds"]
    assert printed.sd is not None
    generator = np.random.default_rng(evidence.seed)
    rows = []
    for pool in ("all", "high"):
        part = table if pool == "all" else table[table["quality"] == "high"]
        for unit in ("rounds", "volleys"):
            lengths = part[unit].to_numpy(dtype=float)
            draws = lengths[generator.permuted(np.tile(np.arange(len(lengths)), (DRAWS, 1)), axis=1)[:, :30]]
            means, sds = draws.mean(axis=1), draws.std(axis=1, ddof=1)
            rows.append(
                {"pool": pool, "unit": unit, "transcripts": len(lengths), "mean": lengths.mean(), "sd": lengths.std(ddof=1)}
                | {"p_mean": float((means >= printed.mean.value).mean()), "p_sd": float((sds >= printed.sd.value).mean())}
            )
    return pd.DataFrame(rows).round(4)


def real_features(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 4, row of the real dialogs: which 30 transcripts were drawn is not known; a permutation test says how likely they are.

    20,000 random samples of 30 without replacement, from all 133 transcripts and from those of high quality; length in rounds
    (counselor volleys) and, as another reading of the word, in volleys of both speakers.
    """
    feature = claim.id.split("-")[-1]
    if feature in ("counselor", "client"):
        return unknown("needs the authors' Chinese translations of the 30 transcripts")
    if feature == "n" or evidence.transcripts.empty:
        return unknown("needs the ids of the 30 transcripts")
    table = sample_of_transcripts(evidence).set_index(["pool", "unit"])
    rounds, high, volleys = table.loc[("all", "rounds")], table.loc[("high", "rounds")], table.loc[("all", "volleys")]
    note = (
        f"All {int(rounds['transcripts'])} transcripts have {rounds['mean']:.2f} ({rounds['sd']:.2f}) rounds. A random sample of 30 has a mean of "
        f"at least {claim.reported} with P = {rounds['p_mean']:.4f} (high quality only: {high['p_mean']:.4f}). If volleys of both speakers "
        f"were counted as rounds: {volleys['mean']:.2f} ({volleys['sd']:.2f}), P = {volleys['p_mean']:.2f}."
    )
    return Result("not recomputable", note, f"{rounds['mean']:.2f}", f"{rounds['sd']:.2f}")


def real_topics(evidence: Evidence) -> pd.DataFrame:
    """Table 5, real dialogs: columns topic, reported, available, expected, p.

    AnnoMI's topics are put under the paper's by the words of `topics.yaml`; `available` are its transcripts of that topic,
    `expected` what a random sample of 30 holds on average, `p` the two-sided hypergeometric probability of the reported count.
    """
    names = evidence.transcripts["topic"].map(lambda text: topic(text, labels()))
    total = len(names)
    rows = []
    for name, reported in evidence.reported_topics.items():
        available = int((names == name).sum())
        spread = stats.hypergeom(total, available, 30)
        chances = spread.pmf(np.arange(31))
        p = float(chances[chances <= spread.pmf(reported) * (1 + 1e-9)].sum())
        rows.append({"topic": name, "reported": reported, "available": available, "expected": 30 * available / total, "p": p})
    return pd.DataFrame(rows).round(4)


def topic_test(evidence: Evidence) -> float:
    """The share of random samples of 30 transcripts that depart as far from AnnoMI's topics as Table 5 does.

    The statistic is Pearson's chi-square against the expected counts, over 20,000 samples without replacement.
    """
    names = evidence.transcripts["topic"].map(lambda text: topic(text, labels()))
    order = list(evidence.reported_topics)
    codes = np.array([order.index(name) for name in names])
    expected = 30 * np.bincount(codes, minlength=len(order)) / len(codes)
    generator = np.random.default_rng(evidence.seed)
    draws = codes[generator.permuted(np.tile(np.arange(len(codes)), (DRAWS, 1)), axis=1)[:, :30]]
    counts = np.stack([(draws == code).sum(axis=1) for code in range(len(order))], axis=1)
    reported = np.array(list(evidence.reported_topics.values()))
    drawn = ((counts - expected) ** 2 / expected).sum(axis=1)
    return float((drawn >= ((reported - expected) ** 2 / expected).sum()).mean())


def real_topic(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 5, real dialogs: is the count possible, and how likely is it, if 30 of AnnoMI's transcripts were drawn at random?

    Hypergeometric probability; AnnoMI's topics are mapped to the paper's by the words of `topics.yaml`.
    """
    if evidence.transcripts.empty:
        return unknown("AnnoMI was unavailable")
    row = real_topics(evidence).set_index("topic").loc[claim.claim]
    note = (
        f"AnnoMI has {int(row['available'])} transcripts of the topic; a random 30 hold {row['expected']:.1f} on average; two-sided P of "
        f"{claim.reported}: {row['p']:.4f}."
    )
    if int(claim.reported) > row["available"]:
        return Result("inconsistent", f"{note} The claim is more than there are.", f"{row['expected']:.1f}")
    return Result("not recomputable", f"{note} Which transcripts were drawn is not known.", f"{row['expected']:.1f}")


def simulated_topics(evidence: Evidence) -> pd.DataFrame:
    """The topic of each released tuned dialog, by all that the client says: columns dialog, model, topic, word (that decides).

    The word is all that is quoted: the authors' release states no license.
    """
    rows = []
    for dialog in evidence.simulated:
        if dialog.meta["arm"] == "tuned":
            text = " / ".join(turn.text for turn in dialog.turns if turn.role == "client")
            name, word = topic_and_word(text, words("zh"))
            rows.append({"dialog": dialog.id, "model": dialog.meta["model"], "topic": name, "word": word})
    return pd.DataFrame(rows, columns=["dialog", "model", "topic", "word"])


def simulated_topic(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 5, simulated dialogs: recount by the words of `topics.yaml` that the client uses first (the words are shown)."""
    table = simulated_topics(evidence)
    if table.empty:
        return unknown("the released workbook was unavailable")
    counts = table[table["topic"] == claim.claim].groupby("model").size().reindex(list(MODELS.values()), fill_value=0)
    recounted = f"{counts.iloc[0]}x3" if counts.nunique() == 1 else "+".join(str(count) for count in counts)
    printed = int(claim.reported.partition("x")[0])
    note = f"{listed_counts(counts)}; each model has {printed} in the paper."
    other_topics = table[table["topic"] == "Other"].groupby("model").size()
    if recounted == claim.reported:
        return Result("reproduced", note, recounted)
    if len(other_topics):
        note += f" Dialogs on none of the paper's topics: {listed_counts(other_topics)}."
    if (counts.drop(NINE) == printed).all():
        note += " The dialog missing from the workbook has this topic, if it is as in the other models."
        return Result("differs", note, recounted, cause="ninth")
    return Result("differs", note, recounted, cause="topic")


def listed_counts(counts: "pd.Series[int]") -> str:
    """Counts as text: `name: count, name: count`."""
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def sum_of_topics(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 5: do the printed counts of a block add up to the number of its dialogs?"""
    block = claim.id.removesuffix("sum")
    total = 0
    for name, other in paper.items():
        if name.startswith(block) and name != claim.id:
            count, _, times = other.reported.partition("x")
            total += int(count) * int(times or 1)
    return judged(claim, total, None, "sum of the printed counts")
