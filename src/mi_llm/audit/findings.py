"""The audit's headline findings: sentences filled from what was computed, each shown only where its evidence is."""

from dataclasses import dataclass

import pandas as pd

from mi_llm.audit.codes import COLUMNS, GLOBALS
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.verdict import Paper, Result, listed

RARE = 0.01  # share of random samples below which a finding is made of it


@dataclass(frozen=True)
class Finding:
    """What was found, from what, what it implies, what else could explain it; with the claims and tables that show it."""

    title: str
    found: str
    implies: str
    otherwise: str
    claims: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


def impossible(results: dict[str, Result], column: str) -> list[str]:
    """The ratings and counts of one of Table 6's columns whose mean or SD cannot be."""
    names = [name for name in results if name.startswith("T6-") and name.endswith(f"-{column}")]
    return [name for name in names if results[name].verdict == "inconsistent" and name.split("-")[1] not in ("CRR", "RQ", "ADH")]


def findings(paper: Paper, results: dict[str, Result], evidence: Evidence, tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """The findings, the weightiest first."""
    found = [nine_dialogs(results, tables), *adherence(results, paper), *swapped(results)]
    found += [
        *shifted(evidence),
        *trivial(tables),
        *annotators(tables),
        *sampled(results, tables),
        *cited(results),
        *one_deviation(results),
    ]
    found += [*ninth(results), untuned()]
    return found


def nine_dialogs(results: dict[str, Result], tables: dict[str, pd.DataFrame]) -> Finding:
    """Which columns of Table 6 can be with the stated number of dialogs."""
    grid = tables["grim"].set_index(["cell", "n"])
    rows = {
        column: [f"T6-{row}-{column}" for row in dict.fromkeys(cell.split("-")[1] for cell in tables["grim"]["cell"])]
        for column in COLUMNS
    }

    def can(column: str, size: int) -> int:
        return sum(bool(grid.loc[(cell, size), "mean_possible"].any()) for cell in rows[column])

    many = len(rows["Baichuan"])
    return Finding(
        "Table 6's Baichuan2 column fits nine dialogs, not the stated ten",
        f"Of its {many} means, {can('Baichuan', 10)} can be means of ten dialogs (whole codes or half points), {can('Baichuan', 9)} of nine. "
        f"In the other columns, with the stated number, it is {can('GLM', 10)} (ChatGLM-4), {can('Llama', 10)} (Llama-3) and {can('Real', 30)} (real dialogs) "
        f"of {many}.",
        "One Baichuan2 dialog was probably not coded. The released workbook lacks its dialog 8 as well.",
        "Other rounding, or codes averaged over more than two raters.",
        tuple(impossible(results, "Baichuan")[:3]),
        ("grim",),
    )


def adherence(results: dict[str, Result], paper: Paper) -> list[Finding]:
    """Ratios that cannot follow from their counts."""
    names = [name for name in results if name.startswith("T6-ADH") and results[name].verdict == "inconsistent"]
    if not names:
        return []
    return [
        Finding(
            f"{len(names)} of the MI-adherent ratios cannot follow from the printed counts",
            " ".join(
                f"{name.split('-')[2]}: printed {paper[name].reported}. {results[name].note.partition('. ')[0]}."
                for name in names
            )
            + f" {results['S11'].note}",
            "The order in the text (ChatGLM-4, Baichuan2, real, Llama-3) does not come out of the printed counts.",
            "A ratio over fewer dialogs, or a formula other than Table 2's.",
            (*names, "S11"),
        )
    ]


def swapped(results: dict[str, Result]) -> list[Finding]:
    """Table 3's columns."""
    names = ("T3-test-counselor", "T3-test-client")
    if any(results[name].verdict not in ("reproduced", "close") for name in names):
        return []
    return [
        Finding(
            "Table 3 prints the counselor's and the client's volley lengths under each other's head",
            f"Recounting the 40 released test dialogs gives {results[names[0]].recomputed} ({results[names[0]].recomputed_sd}) characters for the client, which the "
            f"table prints for the counselor, and {results[names[1]].recomputed} ({results[names[1]].recomputed_sd}) for the counselor.",
            "In these corpora counselors speak longer than clients, not shorter.",
            "None is known: the mean comes out to the printed digits only so.",
            (*names, "T3-CPsy-counselor", "T3-CPsy-client"),
            ("table3",),
        )
    ]


def shifted(evidence: Evidence) -> list[Finding]:
    """The positional test rounds."""
    if not evidence.has("release"):
        return []
    table = evidence.alignment
    bad = table[table["status"] == "shifted"]
    reasons = ", ".join(f"{count} because {reason}" for reason, count in bad["reason"].value_counts().items())
    return [
        Finding(
            f"{len(bad)} of the {len(table)} test samples are not a client's volley with a counselor's reply",
            f"The samples pair messages 2i and 2i + 1 whoever speaks: {reasons}. In {int((table['output_role'] == 'client').sum())} of them the reference is what a "
            f"client says. Labels decide it: dialogs with roles user and assistant count by those.",
            "Base and tuned models were scored on them alike, so both means are affected; a repaired set of "
            f"{evidence.metrics('read', 'release')['rounds_aligned']} rounds stands beside the published one.",
            "The labels, not the order, could be wrong in single dialogs.",
            ("X-367", "X-367b"),
            ("alignment",),
        )
    ]


def trivial(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """Baselines against the paper's models."""
    if "baselines" not in tables:
        return []
    table = tables["baselines"].set_index("predictor")
    base = table[table.index.str.endswith(", base")]["bleu_4"]
    tuned = table[table.index.str.endswith(", tuned")]["bleu_4"]
    names = ("echo_client", "constant", "previous_reply", "random_reference")
    over = [name for name in names if table.loc[name, "bleu_4"] > base.max()]
    scores = ", ".join(f"{name} {table.loc[name, 'bleu_4']:.2f}" for name in names)
    return [
        Finding(
            f"{len(over)} of 4 replies without any model score above every base model in BLEU-4",
            f"On the 367 published rounds: {scores}. The paper's base models have {base.min():.2f} to {base.max():.2f}, its tuned ones {tuned.min():.2f} to {tuned.max():.2f}.",
            "BLEU-4 here rewards replies of the reference's length and turns of phrase; a base model's long, general answers lose by it.",
            "Nothing follows on the tuned models' content; it was judged by MITI codes.",
            tuple(f"X-bleu-base-{model}" for model in ("Baichuan2", "ChatGLM4", "Llama3")),
            ("baselines", "baselines_aligned"),
        )
    ]


def annotators(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """Agreement on simple and complex reflections."""
    if "annomi_agreement" not in tables:
        return []
    table = tables["annomi_agreement"].set_index("code")
    if "reflection_type" not in table.index:
        return []
    kind, present = table.loc["reflection_type"], table.loc["reflection_present"]
    return [
        Finding(
            "Experts agree much less on simple against complex reflections than on whether there is a reflection",
            f"In AnnoMI's shared transcripts ({int(kind['n_pairs'])} pairs of annotators): Fleiss' kappa {kind['fleiss']:.2f} for simple or complex, given a reflection "
            f"(pairs {kind['kappa_min']:.2f} to {kind['kappa_max']:.2f}), {present['fleiss']:.2f} for reflection present.",
            "The complex reflections ratio, on which the paper's main contrast rests, leans on the least reliable of these codes.",
            "AnnoMI's annotators used its own scheme in English, not MITI 4.2.1 in Chinese.",
            ("S2", "S4"),
            ("annomi_agreement",),
        )
    ]


def sampled(results: dict[str, Result], tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """The AnnoMI sample."""
    if "sample_of_transcripts" not in tables or tables["sample_of_transcripts"]["p_mean"].iloc[0] >= RARE:
        return []
    return [
        Finding(
            "The 30 real dialogs are longer, and on other topics, than most random samples of AnnoMI",
            f"{results['X-30real'].note} {results['T4-real-rounds'].note}",
            "The comparison with real MI depends on which transcripts were taken; their ids were not given.",
            "Draws within topics, a choice of longer transcripts, or counting volleys of both speakers as rounds.",
            ("X-30real", "T4-real-rounds", "T5-real-Reducing_alcohol_use"),
            ("real_topics", "sample_of_transcripts"),
        )
    ]


def cited(results: dict[str, Result]) -> list[Finding]:
    """Table 1's rows that belong to another model."""
    names = [name for name in results if name.startswith("T1-") and results[name].verdict == "inconsistent"]
    if not names:
        return []
    return [
        Finding(
            "A row of Table 1 belongs to another model of a similar name",
            results[names[0]].note,
            "The scores do not describe the model that was fine-tuned.",
            "The source may have been updated since.",
            tuple(names),
        )
    ]


def one_deviation(results: dict[str, Result]) -> list[Finding]:
    """Impossible values outside the Baichuan2 column."""
    names = [name for column in ("GLM", "Llama", "Real") for name in impossible(results, column)]
    if not names:
        return []
    words = {True: "globals", False: "counts"}
    kinds = listed(dict.fromkeys(words[name.split("-")[1] in GLOBALS] for name in names))
    return [
        Finding(
            f"Outside the Baichuan2 column {len(names)} {'value' if len(names) == 1 else 'values'} of Table 6 cannot be ({kinds})",
            " ".join(f"{name}: {results[name].note}" for name in names),
            "A slip of the pen, most likely; nothing in the text hangs on it.",
            "Ratings averaged over two raters in this cell alone.",
            tuple(names),
            ("grim",),
        )
    ]


def ninth(results: dict[str, Result]) -> list[Finding]:
    """The missing dialog that Table 4 still counts."""
    note = results["T4-bai-rounds"].note
    if "the tenth existed" not in note:
        return []
    return [
        Finding(
            "Table 4 counts a Baichuan2 dialog that neither the workbook nor, it seems, Table 6 has",
            note,
            "Tables 4 and 6 rest on different dialogs.",
            "None is known: mean and SD fit one number of rounds only.",
            ("T4-bai-rounds", "T4-bai-n", "X-30sim"),
        )
    ]


def untuned() -> Finding:
    """The missing control."""
    return Finding(
        "Whether tuning changed MI behavior was not measured",
        "The untuned models' dialogs with the same clients are in the release, but only tuned models' dialogs were coded by MITI.",
        "The comparison is between tuned models and real dialogs; how much of it tuning brought about is open.",
        "The automatic scores do compare base and tuned, on likeness to the reference.",
        ("S15",),
    )
