"""The report's tables, read from what the stages wrote; each is a pandas table that is also saved as CSV."""

import pandas as pd

from mi_llm import storage
from mi_llm.score.text import LLAMA_FACTORY
from mi_llm.study import Study

CORPUS_NAMES = {
    "cpsycound": "CPsyCounD",
    "psydtcorpus": "PsyDTCorpus",
    "smilechat": "SmileChat",
    "psy_insight": "Psy-Insight",
    "efaqa": "Emotional First Aid",
    "annomi": "AnnoMI",
    "release": "Authors' release",
}
METRIC_NAMES = {"bleu_4": "BLEU-4", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L"}


def mean_sd(numbers: dict[str, float], name: str) -> str:
    """`mean (SD)` with two decimals, as the paper prints it."""
    return f"{numbers[f'{name}_mean']:.2f} ({numbers[f'{name}_sd']:.2f})"


def dialog_features(study: Study) -> pd.DataFrame:
    """Table 3 for every corpus that was read, the training dialogs and the test dialogs."""
    rows = [(CORPUS_NAMES[corpus], study.folder / "read" / corpus / "metrics.json") for corpus in study.corpora]
    found = [(name, storage.read_json(path)) for name, path in rows]
    parts = storage.read_json(study.folder / "split" / "metrics.json")
    found += [("Training dialogs (MI style)", parts["train"]), ("Test dialogs (MI style)", parts["test"])]
    return pd.DataFrame(
        {
            "Dialogs": [int(numbers["dialogs"]) for _, numbers in found],
            "Dialog rounds, mean (SD)": [mean_sd(numbers, "rounds") for _, numbers in found],
            "Characters per counselor volley, mean (SD)": [mean_sd(numbers, "counselor") for _, numbers in found],
            "Characters per client volley, mean (SD)": [mean_sd(numbers, "client") for _, numbers in found],
        },
        index=pd.Index([name for name, _ in found], name="Dataset"),
    )


def repairs(study: Study) -> pd.DataFrame:
    """What the readers repaired, by corpus."""
    tables = []
    for corpus in study.corpora:
        table = pd.read_csv(study.folder / "read" / corpus / "repairs.csv")
        table.insert(0, "corpus", CORPUS_NAMES[corpus])
        tables.append(table)
    return pd.concat(tables).set_index("corpus")


def rating_means(study: Study) -> pd.DataFrame:
    """The numbers of Figure 2: corpus and aspect with mean, interval, dialogs and the aspect's maximum; perhaps empty."""
    table = pd.read_csv(study.folder / "rate" / "means.csv")
    table["corpus"] = table["corpus"].map(CORPUS_NAMES)
    return table.set_index("corpus")


def ratings(study: Study) -> pd.DataFrame:
    """Figure 2 as a table: mean and interval of each aspect, what the totals choose, and how stable that is."""
    means, choice = rating_means(study), pd.read_csv(study.folder / "rate" / "choice.csv")
    wide = {aspect: [interval(row) for _, row in rows.iterrows()] for aspect, rows in means.groupby("aspect", sort=False)}
    names = list(dict.fromkeys(means.index))
    table = pd.DataFrame(wide, index=pd.Index(names, name="Dataset"))
    choice = choice.assign(corpus=choice["corpus"].map(CORPUS_NAMES)).set_index("corpus").loc[names]
    table["Rank"] = choice["rank"]
    table[f"Among the first {study.rate.top} in resamples"] = [f"{share:.0%}" for share in choice["chosen_share"]]
    table["Transcribed in this study"] = ["yes" if used else "no" for used in choice["transcribed"]]
    return table.loc[choice.sort_values("rank").index].rename_axis("Dataset")


def chosen(study: Study) -> list[str]:
    """The names of the corpora that the totals choose."""
    choice = pd.read_csv(study.folder / "rate" / "choice.csv")
    return [CORPUS_NAMES[corpus] for corpus in choice.loc[choice["chosen"], "corpus"]]


def screening(study: Study) -> pd.DataFrame:
    """Counts of screening decisions by source, decision, kinds of fault and who decided."""
    table = pd.read_csv(study.folder / "screen" / "screening.csv", keep_default_na=False)
    table["Dataset"] = table["dialog"].str.split("/").str[0].map(CORPUS_NAMES)
    table["kinds"] = table["kinds"].replace("", "nothing found")
    counts = table.groupby(["Dataset", "decision", "kinds", "who"]).size().rename("dialogs").reset_index()
    names = {"decision": "Decision", "kinds": "Found by the checks", "who": "Decided by", "dialogs": "Dialogs"}
    return counts.rename(columns=names).set_index("Dataset")


def losses(study: Study) -> pd.DataFrame:
    """The training loss by step, a column a model."""
    place = "dvclive/plots/metrics/loss.tsv"
    curves = {
        model: pd.read_csv(study.folder / "finetune" / model / place, sep="\t").set_index("step")["loss"]
        for model in study.models
    }
    return pd.DataFrame(curves)


def scores(study: Study) -> pd.DataFrame:
    """All scores with intervals and signatures, as `score` wrote them."""
    return pd.read_csv(study.folder / "score" / "scores.csv")


def figure_3(study: Study) -> pd.DataFrame:
    """The numbers of Figure 3: for each model and metric base, tuned, and the paired difference, with intervals."""
    both = scores(study).set_index(["model", "arm", "metric"])
    paired = pd.read_csv(study.folder / "score" / "paired.csv").set_index(["model", "metric"])
    rows = []
    for model in study.models:
        for metric in LLAMA_FACTORY:
            row = {"Model": model, "Metric": METRIC_NAMES[metric]}
            for arm in ("base", "tuned"):
                row[arm.capitalize()] = interval(both.loc[(model, arm, metric)])
            row["Tuned − base"] = interval(paired.loc[(model, metric)])
            rows.append(row)
    return pd.DataFrame(rows).set_index("Model")


def interval(row: pd.Series) -> str:
    """`mean [lo, hi]`."""
    return f"{row['mean']:.2f} [{row['lo']:.2f}, {row['hi']:.2f}]"


OTHER_NAMES = {
    "sacrebleu_zh": "sacreBLEU (zh)",
    "rouge_score_1": "rouge-score 1",
    "rouge_score_2": "rouge-score 2",
    "rouge_score_l": "rouge-score L",
}


def other_scores(study: Study) -> pd.DataFrame:
    """The scores that stand beside the paper's measure."""
    table = scores(study)
    table = table[table["metric"].isin(list(OTHER_NAMES))]
    wide = table.pivot_table(index=["model", "arm"], columns="metric", values="mean", sort=False).round(2)
    return wide[list(OTHER_NAMES)].rename(columns=OTHER_NAMES).rename_axis(columns=None)


def signatures(study: Study) -> pd.DataFrame:
    """The settings behind each kind of score."""
    table = scores(study).drop_duplicates("metric")
    names = METRIC_NAMES | OTHER_NAMES
    return pd.DataFrame({"score": [names[metric] for metric in table["metric"]], "signature": table["signature"]}).set_index(
        "score"
    )
