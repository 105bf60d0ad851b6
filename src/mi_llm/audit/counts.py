"""Counts and settings in the text, Tables 1 and 2: against the released files, the cited sources, and each other."""

import math
import random
import re
from dataclasses import replace

from mi_llm.audit.codes import COLUMNS, COUNTS, RATERS, cell, totals
from mi_llm.audit.dialogs import sample_of_transcripts, topic_test, tuned, unlabeled
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.verdict import Result, Verdict, because, equal, holds, judged, listed, unknown
from mi_llm.corpora.fetch import sources
from mi_llm.corpora.release import hyperparameters
from mi_llm.paper import models
from mi_llm.paper.claims import Claim, Paper, Printed

CHINESE = ("cpsycound", "psydtcorpus", "smilechat", "psy_insight", "efaqa")  # Results, Screening
SETTINGS = {"scheduler": "lr_scheduler_type", "epochs": "num_train_epochs", "precision": "bf16"}  # the appendix's names
SYMBOLS = ("CCT", "SST", "Partnership", "Empathy", "SR", "CR", "Q", "SC", "AF", "EA", "Confront", "Persuade")


def cited_benchmark(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 1: the number in a public source, and whether the source gives it for the model that the row names.

    The source that the table cites and the one that was looked at are named apart: they are the same in no row.
    """
    fact = {entry["claim"]: entry for entry in evidence.literature["benchmarks"]}[claim.id]
    row = claim.location.split(" / ")[1]
    note = f"Cited: {evidence.literature['table_1'][row]}. Looked at: "
    if fact.get("value") is None:
        return unknown(f"{note}{fact['looked_at']}; not found there. {fact['note']}")
    source = evidence.literature["sources"][fact["source"]]
    meant = models.rows_of_table_1()[row]
    note += f"{source['title']} ({source['url']}; {source['place']}; {fact.get('setting', 'setting not given')}): {fact['value']} for {fact['model']}."
    result = judged(claim, float(fact["value"]), None, note)
    if result.verdict != "differs" and fact["model"] != meant:
        note += f" The model of this row is {meant}, which is a different model."
        return Result("inconsistent", note, result.recomputed, cause="cited")
    return result


def cited_fact(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Facts on models and benchmarks: what a public source says (`literature.yaml`)."""
    fact = {entry["claim"]: entry for entry in evidence.literature["facts"]}[claim.id]
    source = evidence.literature["sources"][fact["source"]]
    recomputed = month(str(fact["value"]))
    note = f"{source['title']} ({source['url']}; {source['place']}): {fact['value']}. {fact.get('note', '')}".strip()
    return because(equal(claim, recomputed, note), fact.get("cause", ""))


def month(text: str) -> str:
    """An ISO date in the paper's style, `June 2024`; other text unchanged."""
    names = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    match = re.fullmatch(r"(\d{4})-(\d\d)(-\d\d)?", text)
    return f"{names[int(match[2]) - 1]} {match[1]}" if match else text


def evaluate(formula: str, values: dict[str, float]) -> float:
    """The value of a formula of sums and quotients, such as `(SR+CR)/Q`."""
    top, _, bottom = formula.partition("/")

    def total(side: str) -> float:
        names = side.strip("() ").split("+")
        return math.fsum(values[name.strip()] if name.strip() in values else float(name) for name in names)

    return total(top) / (total(bottom) if bottom else 1.0)


def manual_formula(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 2: is the formula the MITI manual's? Both are evaluated on 100 random codings.

    The MI-adherent ratio is the paper's own, as it says; it is compared with the manual's two sums that the text makes it of.
    """
    formula = evidence.literature["miti"][claim.claim.removeprefix("formula ")]
    chance = random.Random(evidence.seed)
    codings = [{symbol: float(chance.randint(1, 20)) for symbol in SYMBOLS} for _ in range(100)]
    same = all(math.isclose(evaluate(claim.reported, coding), evaluate(formula["is"], coding)) for coding in codings)
    return holds(same, f"{formula['note']} Evaluated on 100 random codings.".strip(), formula["is"])


def named_corpora(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """The Chinese corpora that the paper names: the number fits its own list; each is looked for at its public source."""
    acquired = [name for name in CHINESE if evidence.has(name)]
    bought = [
        name
        for name in CHINESE
        if sources()[name].obtain and not any(sources()[name].files.values()) and not sources()[name].commit
    ]
    note = f"The text names as many: {listed(CHINESE)}. Acquired in this run: {listed(acquired) or 'none'}. Needs a bought license: {listed(bought)}."
    result = judged(claim, len(CHINESE), None, note)
    return replace(result, verdict="possible") if result.verdict == "reproduced" else result


def rating_maximum(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """The rating prompt in the appendix: its aspects, and the maxima of their criteria."""
    prompt = evidence.appendix.get("三", "")
    if not prompt:
        return unknown("the appendix was unavailable")
    maxima = [float(number) for number in re.findall(r"^\d\. *\w+ *\(Maximum Score: *([\d.]+)\)", prompt, re.MULTILINE)]
    points = [0.0] * len(maxima)
    for aspect, number in re.findall(r"^(\d)\.\d .*?\(([\d.]+) point", prompt, re.MULTILINE):
        points[int(aspect) - 1] += float(number)
    note = f"Maxima {listed(f'{number:g}' for number in maxima)}, together {sum(maxima):g}; their criteria's points: {listed(f'{n:g}' for n in points)}."
    return judged(claim, len(maxima), None, note) if points == maxima else Result("inconsistent", note, str(len(maxima)))


def sum_of_parts(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """A total against the parts that the paper gives."""
    parts = {"X-2040": ("X-1520", "X-520"), "X-60": ("X-30sim", "X-30real")}[claim.id]
    total = sum(int(paper[part].reported) for part in parts)
    return judged(claim, total, None, " + ".join(paper[part].reported for part in parts))


def training_dialogs(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """The training dialogs: counted in the released file if it is available, else only fitted to the other numbers."""
    dialogs = evidence.dialogs("training")
    if dialogs:
        return judged(claim, len(dialogs), None, str(evidence.metrics("read", "release")["training_file"]))
    left = int(paper["X-2040"].reported) - int(paper["X-40"].reported)
    note = f"{paper['X-2040'].reported} transcribed dialogs minus {paper['X-40'].reported} for the test; the training file was unavailable."
    if samples := hyperparameters(evidence.appendix.get("五", "")).get("max_samples"):
        note += (
            f" The appendix sets max_samples: {samples}, which counts records: if the records were rounds, training used "
            "only the first few hundred dialogs."
        )
    fits = str(left) == claim.reported
    return Result("possible" if fits else "inconsistent", note, str(left), basis="paper")


def test_dialogs(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """The released test dialogs, counted."""
    return (
        judged(claim, len(evidence.published), None, "released file")
        if evidence.published
        else unknown("the release was unavailable")
    )


def test_samples(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """The released test samples, counted; and how many are not a client volley with a counselor's reply."""
    rounds = evidence.rounds("rounds")
    if not rounds:
        return unknown("the release was unavailable")
    shifted = int((evidence.alignment["status"] == "shifted").sum())
    return judged(
        claim, len(rounds), None, f"In {shifted} of them the reference is not a counselor volley that answers the client."
    )


def rounds_a_dialog(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Samples over dialogs, both as the paper gives them, against the mean rounds of Table 3's test row; the release says why."""
    ratio = int(paper["X-367"].reported) / int(paper["X-40"].reported)
    note = f"{paper['X-367'].reported} samples of {paper['X-40'].reported} dialogs are {ratio:.3f} per dialog; Table 3 prints {claim.reported}."
    result = judged(claim, ratio, None, note)
    if result.verdict != "differs":
        return result
    if evidence.published:
        rounds = unlabeled(evidence)
        note += (
            f" In Table 3 the {rounds['others']} dialogs with other labels than client and counselor count as 0 rounds; they hold"
            f" {rounds['their_samples']} of the samples. The other {rounds['labeled']} dialogs have a mean of {rounds['labeled_mean']:.2f}."
        )
    return Result("inconsistent", note, result.recomputed, cause="rounds")


def instruction_years(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """The fixed instruction in the released test samples: does it mention twenty years?"""
    for file in evidence.release:
        if file.name.endswith("eval_40.json"):
            texts = set(re.findall(r'"(?:instruction)?": *"([^"]*)"', file.text()))
            years = [text for text in texts if "二十年" in text or "20年" in text]
            return holds(len(years) == 1, f"{len(years)} wording across all samples", claim.reported if years else "")
    return unknown("the release was unavailable")


def appendix_setting(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """A training setting against the appendix's configuration."""
    settings = hyperparameters(evidence.appendix.get("五", ""))
    if not settings:
        return unknown("the appendix was unavailable")
    name = claim.id.removeprefix("X-hp-")
    setting = settings.get(SETTINGS.get(name, name), "")
    if name == "precision":
        return equal(claim, "BF16" if setting == "true" else setting, f"bf16: {setting}")
    if re.fullmatch(r"[\d.e+-]+", setting) and float(setting) == float(claim.reported):
        return Result("reproduced", f"{SETTINGS.get(name, name)}: {setting}", claim.reported)
    return equal(claim, setting, f"{SETTINGS.get(name, name)}: {setting}")


def unstated_settings(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Settings that the paper does not give: does the appendix? There is no number to reproduce."""
    settings = hyperparameters(evidence.appendix.get("五", ""))
    if not settings:
        return unknown("the appendix was unavailable")
    names = ("lora_rank", "lora_alpha", "lora_dropout", "seed", "temperature", "top_p")
    stated = [name for name in names if name in settings]
    return unknown(f"The paper gives none of {listed(names)}; the appendix gives {listed(stated) or 'none'} of them.")


def simulated_dialogs(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """The released dialogs with tuned models, counted."""
    order = [dialog.meta["model"] for dialog in evidence.simulated]  # the workbook's
    counts = {model: len(tuned(evidence, model)) for model in dict.fromkeys([*order, *models.tuned()])}
    if not any(counts.values()):
        return unknown("the released workbook was unavailable")
    note = f"{', '.join(f'{model}: {count}' for model, count in counts.items())}."
    if claim.id == "X-10each":
        verdict: Verdict = "reproduced" if set(counts.values()) == {10} else "differs"
        return because(Result(verdict, note, "/".join(map(str, counts.values()))), "ninth")
    return because(judged(claim, sum(counts.values()), None, note), "ninth")


def random_sample(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Were the 30 real dialogs drawn at random from AnnoMI? Permutation tests of length and topics, under each plausible reading."""
    if evidence.transcripts.empty:
        return unknown("AnnoMI was unavailable")
    table = sample_of_transcripts(evidence).set_index(["pool", "unit"])["p_mean"]
    note = (
        f"Of 20,000 random samples of 30 transcripts, a share of {topic_test(evidence):.4f} deviates from AnnoMI's topics as much as Table 5 does. As long as "
        f"stated in Table 4 is a share of {table['all', 'rounds']:.4f} if a round is a counselor volley ({table['high', 'rounds']:.4f} of the high-quality "
        f"transcripts), and of {table['all', 'volleys']:.2f} if it is a volley of either speaker. Stratified sampling, a choice by hand, or other topic names "
        "could explain a small share."
    )
    return unknown(note)


def number_of_raters(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """How many raters' codes were averaged, by the printed counts: the smallest number with which most of them are possible."""
    fits = {
        raters: sum(
            bool(totals(cell(paper, row, column).mean, size, raters)) for row in COUNTS for column, size in COLUMNS.items()
        )
        for raters in RATERS
    }
    best = max(RATERS, key=lambda raters: (fits[raters], -raters))
    note = f"Of {len(COUNTS) * len(COLUMNS)} mean counts, {fits[1]} can be means of whole numbers, {fits[2]} of averages of two raters."
    return Result("possible" if str(best) == claim.reported else "inconsistent", note, str(best))


def correlation(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Training of the raters: codes not released; how sure a correlation of four dialogs' globals is, by Fisher's z."""
    value, pairs = Printed.of(claim.reported).value, 4 * 4
    low, high = (math.tanh(math.atanh(value) + sign * 1.96 / math.sqrt(pairs - 3)) for sign in (-1, 1))
    return unknown(
        f"The codes were not released. If it is over 4 dialogs × 4 globals, its 95 % interval is {low:.2f} to {high:.2f}."
    )


def not_released(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """The data needed were not released."""
    return unknown(NEEDS.get(claim.id, "The data needed were not released."))


NEEDS = {
    "X-top2": "GPT-4's ratings were not released; Figure 2 has no numbers.",
    "X-50": "The sampled dialogs were not named.",
    "X-1520": "The chosen dialogs were not named; the corpus is large enough.",
    "X-520": "The chosen dialogs were not named.",
    "X-rouge": "Neither the replies nor Figure 3's numbers were released. baselines.csv shows the scores of four simple rules.",
    "X-3round": "An example in words.",
    "X-dates1": "The answers have no dates.",
    "X-dates2": "The replies were not released.",
    "X-2res": "The workbook does not name who spoke; its clients use two names.",
    "X-rel-sessions": "A statement about training; no record of it is public.",
    "X-rel-samples": "A statement about training; no record of it is public.",
    "X-rel-volleys": "A statement about training; no record of it is public.",
    "X-rel-k-std": "The codes were not released.",
    "X-rel-k12": "The codes were not released.",
    "S15": "The untuned models' dialogs were never coded by MITI, so the effect of tuning on MI behavior was not measured; their dialogs are released.",
}  # fmt: skip


def model_score(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """BLEU-4 of the paper's models: replies not released. The scores of four simple rules on the same rounds are given for comparison."""
    if not evidence.baselines:
        return unknown("The replies were not released, and the test rounds were unavailable.")
    value = float(claim.reported)
    above = [name for name, score in evidence.baselines.items() if score > value and name != "reference"]
    note = "The replies were not released. "
    note += f"On the same rounds, the simple rules {listed(above)} score higher." if above else "No simple rule scores higher."
    return unknown(f"{note} previous_reply and random_reference take their words from the test set.")
