"""The report's tables, read from what the stages wrote; each is a pandas table that is also saved as CSV."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.codebook.tables import automatic, read_tables
from mi_llm.corpora import annomi
from mi_llm.language import language
from mi_llm.paper.claims import TABLE_3, claims
from mi_llm.registry import CORPORA, modules
from mi_llm.score.metrics import METRIC_NAMES, other_names
from mi_llm.study import ARMS, Study

CORPUS_NAMES: dict[str, str] = {name: module.NAME.en for name, module in modules(CORPORA).items()}


def corpus_name(corpus: str) -> str:
    """What people call a corpus; your own is called as in the parameters."""
    return CORPUS_NAMES.get(corpus, corpus)


SET_NAMES = {"test": "test rounds", "published": "as published", "aligned": "repaired"}
BASELINE_NAMES = {
    "echo_client": "echo client: the client's own words",
    "constant": "constant: one sentence for all rounds",
    "previous_reply": "previous reply: the counselor's last volley again",
    "random_reference": "random reference: from another dialog",
    "reference": "reference: itself",
}
DIAGNOSTIC_NAMES = {
    "repeated_4grams": "Repeated 4-grams",
    "empty": "Empty",
    "duplicate": "Same as another",
    "distinct_1": "Distinct-1",
    "distinct_2": "Distinct-2",
}
SHARES = ("repeated_4grams", "empty", "duplicate")
DECODING_NAMES = {"greedy": "greedy", "sample": "sampling"}
NOT_STATED = "not stated"  # a setting of which the paper says nothing, and no claim of it stands alone


def mean_sd(numbers: dict[str, float], name: str) -> str:
    """`mean (SD)` with two decimals, as the paper prints it."""
    return f"{numbers[f'{name}_mean']:.2f} ({numbers[f'{name}_sd']:.2f})"


FEATURES = {
    "rounds": "Dialog rounds, mean (SD)",
    "counselor": "Characters per counselor volley, mean (SD)",
    "client": "Characters per client volley, mean (SD)",
}


def dialog_features(study: Study) -> pd.DataFrame:
    """Table 3 for every corpus that was read, the training and the test dialogs; in a reproduction with the paper's numbers."""
    folder = study.path("read")
    dialog_sets = [
        (str(corpus), corpus_name(corpus), storage.read_json(folder / corpus / "metrics.json")) for corpus in study.corpora
    ]
    parts = storage.read_json(study.path("split", "metrics.json"))
    dialog_sets += [("train", "Training dialogs (MI style)", parts["train"]), ("test", "Test dialogs (MI style)", parts["test"])]
    rows = []
    for name, title, numbers in dialog_sets:
        row: dict[str, object] = {"Dataset": title, "Dialogs": int(numbers["dialogs"])}
        for feature, heading in FEATURES.items():
            row[heading] = mean_sd(numbers, feature)
            if study.reproduction:
                row[f"{heading}, paper"] = claimed(f"T3-{TABLE_3.get(name)}-{feature}")
        rows.append(row)
    return pd.DataFrame(rows).set_index("Dataset")


def recounts(study: Study) -> dict[str, tuple[float, float, str]]:
    """The audit's recount of Table 3 by the claim's id: mean, SD, verdict; without claims whose dialogs were unavailable."""
    table = pd.read_csv(study.path("audit", "claims.csv"), dtype=str, keep_default_na=False)
    table = table[table["id"].str.startswith("T3-") & (table["recomputed"] != "")]
    return {row.id: (float(row.recomputed), float(row.recomputed_sd), row.verdict) for row in table.itertuples()}


def claimed(name: str) -> str:
    """What the paper printed for a claim, by its id: `mean (SD)`, or a dash where there is no such claim."""
    claim = claims().get(name)
    if claim is None:
        return "—"
    return f"{claim.reported} ({claim.reported_sd})" if claim.reported_sd else claim.reported


def benchmarks(study: Study) -> pd.DataFrame:
    """Table 1 as printed, with the audit's verdict on each number."""
    audited = pd.read_csv(study.path("audit", "claims.csv")).set_index("id")["verdict"]
    rows: dict[str, dict[str, str]] = {}
    for name, claim in claims().items():
        if name.startswith("T1-"):
            _, model, measure = claim.location.split(" / ")
            rows.setdefault(model, {})[measure] = f"{claim.reported} ({audited[name]})"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("Model")


def settings(study: Study) -> pd.DataFrame:
    """This study's hyperparameters; in a reproduction beside the paper's, also those that the paper does not name."""
    tune, respond = study.finetune, study.respond
    rows = [
        ("Learning rate", claimed("X-hp-learning_rate"), f"{tune.learning_rate:g}"),
        ("Learning rate schedule", claimed("X-hp-scheduler"), tune.scheduler),
        ("Batch size of a device", claimed("X-hp-per_device_train_batch_size"), f"{tune.batch}"),
        ("Gradient accumulation", claimed("X-hp-gradient_accumulation_steps"), f"{tune.accumulation}"),
        ("Epochs", claimed("X-hp-epochs"), f"{tune.epochs}"),
        ("Warm-up ratio", claimed("X-hp-warmup_ratio"), f"{tune.warmup_ratio:g}"),
        ("Precision", claimed("X-hp-precision"), tune.precision),
        ("Steps between log entries", claimed("X-hp-logging_steps"), f"{tune.log_every}"),
        ("Steps between saves", claimed("X-hp-save_steps"), f"{tune.save_every}"),
        ("LoRA rank, alpha, dropout", claimed("X-lora"), f"{tune.lora.rank}, {tune.lora.alpha}, {tune.lora.dropout:g}"),
        *trained(study),
        ("Decoding", NOT_STATED, DECODING_NAMES[respond.decoding]),
        ("Seed", NOT_STATED, f"{study.seed}"),
    ]
    table = pd.DataFrame(rows, columns=["Setting", "Paper", "This study"]).set_index("Setting")
    return table if study.reproduction else table.drop(columns="Paper")


def trained(study: Study) -> list[tuple[str, str, str]]:
    """Rows of the settings: LoRA's trained parameters, for hub models whose published layout gives another number."""
    tuned = [model for model in study.from_hub if model in study.tuned]
    if not tuned:
        return []
    from mi_llm.models import hub  # no other study needs what it imports

    entries, rank = {model: hub.entry_of(study, model) for model in tuned}, study.finetune.lora.rank
    return [
        (
            f"Trained parameters of {model}",
            NOT_STATED,
            f"{entry.shape.adapter(rank):,} (q, k, v: three matrices);"
            f" {entry.shape.adapter(rank, joined_qkv=True):,} on the published layout (q, k, v: one matrix)",
        )
        for model, entry in entries.items()
        if entry.original and entry.original.joined_qkv
    ]


def counts(study: Study) -> pd.DataFrame:
    """The amounts of data in this run: the numbers that the pages' sentences name."""
    parts = storage.read_json(study.path("split", "metrics.json"))
    talks = storage.read_json(study.path("summary", "metrics.json"))
    rows = [("Dialogs rated", storage.read_json(study.path("rate", "metrics.json"))["rated"])] if study.rate.corpora else []
    rows.append(("Dialogs screened", storage.read_json(study.path("screen", "metrics.json"))["screened"]))
    if annomi.KEY in study.corpora:
        translated = storage.read_json(study.path("translate", "metrics.json"))
        name = language.load(study.language).name.en
        into = "" if study.language == annomi.LANGUAGE else f" translated into {name}"
        rows.append((f"AnnoMI transcripts{into}", translated["transcripts"]))
        rows.append(("Turns in them", translated["turns"]))
    rows += [
        ("Training dialogs (MI style)", parts["train"]["dialogs"]),
        ("Test dialogs (MI style)", parts["test"]["dialogs"]),
        ("Test rounds", parts["test"]["round_samples"]),
        ("Blinded transcripts", talks["packets"]),
        ("Transcripts coded", talks["coded"]),
    ]
    return pd.DataFrame(rows, columns=["What", "Number"]).set_index("What")


def training(study: Study) -> pd.DataFrame:
    """How much each model was trained on, and its loss."""
    rows = []
    for model in study.tuned:
        numbers = storage.read_json(study.path("finetune", model, "metrics.json"))
        rows.append(
            {
                "Model": model,
                "Records": numbers["records"],
                "Steps": numbers["steps"],
                "Trained parameters": f"{numbers['trainable_parameters']:,}",
                "First loss": f"{numbers['first_loss']:.3f}",
                "Last loss": f"{numbers['last_loss']:.3f}",
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["Model"]).set_index("Model")


def replies(study: Study) -> pd.DataFrame:
    """The mean length of replies in tokens, and the share that was cut at the limit, by arm."""
    rows = []
    for model in study.models:
        numbers = storage.read_json(study.path("respond", model, "metrics.json"))
        for arm in study.arms(model):
            mean, cut = numbers[f"{arm}_tokens_mean"], numbers[f"{arm}_cut_share"]
            rows.append({"Replies of": f"{model} {arm}", "Tokens, mean": f"{mean:.1f}", "Cut": f"{cut:.1%}"})
    return pd.DataFrame(rows).set_index("Replies of")


def sources(study: Study) -> pd.DataFrame:
    """Each corpus with its source and the numbers of files that were and were not available."""
    rows = []
    for corpus in study.corpora:
        numbers = storage.read_json(study.path("acquire", corpus, "metrics.json"))
        missing = len(pd.read_csv(study.path("acquire", corpus, "missing.csv")))
        kind = "upstream" if corpus in study.acquire.upstream else "own" if study.corpora[corpus].paths else "sample"
        rows.append({"Dataset": corpus_name(corpus), "Source": kind, "Files": numbers["files"], "Files missing": missing})
    return pd.DataFrame(rows).set_index("Dataset")


def not_had(study: Study) -> pd.DataFrame:
    """What the study's parameters ask for, or the paper had, and this run lacks: what, why, and how to get it."""
    rows = []
    for corpus, row in missing_files(study):
        rows.append((f"{corpus_name(corpus)}: {row.path}", row.why, row.remedy))
    record, none = f"--study {study.params} --mode record", "none recorded"
    if study.reproduction:
        none = f"not published, and {none}"
    if study.rate.corpora and not storage.read_json(study.path("rate", "metrics.json"))["rated"]:
        rows.append(("Ratings of the corpora", none, f"mi-llm rate {record}"))
    if annomi.KEY in study.corpora and not storage.read_json(study.path("translate", "metrics.json"))["transcripts"]:
        rows.append((f"AnnoMI in {language.load(study.language).name.en}", none, f"mi-llm translate {record}"))
    if not pd.read_csv(study.path("blind", "key.csv"))["arm"].isin(ARMS).any():
        remedy = f"mi-llm simulate MODEL {record}" if study.simulate.client == "llm" else "docs/human-evaluation.md"
        rows.append(("Dialogs with standardized clients", "none recorded", remedy))
    if all(map(automatic, read_tables(study.path("code"))[0]["rater"])):
        rows.append(("Codes given by people", "no person has coded these transcripts", "docs/human-evaluation.md"))
    if study.reproduction:
        open_ = (pd.read_csv(study.path("audit", "claims.csv"))["verdict"] == "not recomputable").sum()
        rows.append((f"Evidence for {open_} of the paper's numbers", "not public, or not in this study", "audit/claims.csv"))
    return pd.DataFrame(rows, columns=["What", "Why", "Remedy"]).set_index("What")


def missing_files(study: Study) -> Iterator[tuple[str, Any]]:
    """Each corpus's files that were unavailable: in a reproduction of the paper's corpora, else of the study's own."""
    if study.reproduction:
        table = pd.read_csv(study.path("audit", "missing.csv"), dtype=str, keep_default_na=False)
        yield from ((str(row.corpus), row) for row in table.itertuples())
        return
    for corpus in study.corpora:
        table = pd.read_csv(study.path("acquire", corpus, "missing.csv"), dtype=str, keep_default_na=False)
        yield from ((corpus, row) for row in table.itertuples())


def repairs(study: Study) -> pd.DataFrame:
    """What the readers repaired, by corpus."""
    tables = []
    for corpus in study.corpora:
        table = pd.read_csv(study.path("read", corpus, "repairs.csv"))
        table.insert(0, "corpus", corpus_name(corpus))
        tables.append(table)
    return pd.concat(tables).set_index("corpus")


def rating_means(study: Study) -> pd.DataFrame:
    """The numbers of Figure 2: corpus and aspect with mean, interval, dialogs and the aspect's maximum; perhaps empty."""
    table = pd.read_csv(study.path("rate", "means.csv"))
    table["corpus"] = table["corpus"].map(corpus_name)
    return table.set_index("corpus")


def ratings(study: Study) -> pd.DataFrame:
    """Figure 2 as a table: mean and interval of each aspect, what the totals choose, and how stable that is."""
    means, choice = rating_means(study), pd.read_csv(study.path("rate", "choice.csv"))
    wide = {aspect: [interval(row) for _, row in rows.iterrows()] for aspect, rows in means.groupby("aspect", sort=False)}
    names = list(dict.fromkeys(means.index))
    table = pd.DataFrame(wide, index=pd.Index(names, name="Dataset"))
    choice = choice.assign(corpus=choice["corpus"].map(corpus_name)).set_index("corpus").loc[names]
    table["Rank"] = choice["rank"]
    table[f"Among the first {study.rate.top} in resamples"] = [f"{share:.0%}" for share in choice["chosen_share"]]
    table["Transcribed in this study"] = ["yes" if used else "no" for used in choice["transcribed"]]
    return table.loc[choice.sort_values("rank").index].rename_axis("Dataset")


def chosen(study: Study) -> list[str]:
    """The names of the corpora that the totals choose."""
    choice = pd.read_csv(study.path("rate", "choice.csv"))
    return [corpus_name(corpus) for corpus in choice.loc[choice["chosen"], "corpus"]]


def screening(study: Study) -> pd.DataFrame:
    """Counts of screening decisions by source, decision, kinds of fault and who decided."""
    table = pd.read_csv(study.path("screen", "screening.csv"), keep_default_na=False)
    table["Dataset"] = table["dialog"].str.split("/").str[0].map(corpus_name)
    table["kinds"] = table["kinds"].replace("", "nothing found")
    counts = table.groupby(["Dataset", "decision", "kinds", "who"]).size().rename("dialogs").reset_index()
    names = {"decision": "Decision", "kinds": "Found by the checks", "who": "Decided by", "dialogs": "Dialogs"}
    return counts.rename(columns=names).set_index("Dataset")


def losses(study: Study) -> pd.DataFrame:
    """The training loss by model and step."""
    file = "dvclive/plots/metrics/loss.tsv"
    curves = [
        pd.read_csv(study.path("finetune", model, file), sep="\t")[["step", "loss"]].assign(model=model) for model in study.tuned
    ]
    return (pd.concat(curves) if curves else pd.DataFrame(columns=["model", "step", "loss"])).set_index("model")


def scores(study: Study) -> pd.DataFrame:
    """All scores with intervals and signatures, as `score` wrote them."""
    return pd.read_csv(study.path("score", "scores.csv"))


def by_set(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its column `set` in words, or without it where the study has only one test set."""
    if table["set"].nunique() == 1:
        return table.drop(columns="set")
    return table.assign(set=table["set"].map(SET_NAMES)).rename(columns={"set": "Test set"})


def paired(study: Study) -> pd.DataFrame:
    """All comparisons of two systems, as `score` wrote them, with the difference, its interval and the tests as text."""
    table = pd.read_csv(study.path("score", "paired.csv"))
    table["Metric"] = table["metric"].map(METRIC_NAMES)
    table["Difference"] = [interval(row) for _, row in table.iterrows()]
    table["P (Holm)"] = table["p_holm"].map(p_value)
    table["d_z"] = ["—" if math.isnan(d) else f"{d:.2f}".replace("-", "−") for d in table["d_z"]]
    table["Superiority"] = table["superiority"].map("{:.2f}".format)
    return table


def p_value(p: float) -> str:
    """A p-value with three decimals; a dash where there was no test."""
    if math.isnan(p):
        return "—"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


TESTS = ["P (Holm)", "d_z", "Superiority"]


def figure_3(study: Study) -> pd.DataFrame:
    """The numbers of Figure 3: for each model and metric base, tuned, and the paired difference, with intervals and tests."""
    both = scores(study).set_index(["set", "model", "arm", "metric"])
    table = paired(study)
    table = table[table["second"].str.endswith(" base")].copy()
    table["Model"] = table["second"].str.removesuffix(" base")
    for arm in ARMS:
        keys = zip(table["set"], table["Model"], table["metric"], strict=True)
        table[arm.capitalize()] = [interval(both.loc[(name, model, arm, metric)]) for name, model, metric in keys]
    table = table.rename(columns={"Difference": "Tuned − base"})
    untuned = [
        {"set": name, "Model": model, "Metric": METRIC_NAMES[metric], "Base": interval(both.loc[(name, model, "base", metric)])}
        for name in both.index.unique("set")
        for model in study.models
        if model not in study.tuned
        for metric in METRIC_NAMES
    ]
    if untuned:
        table = pd.concat([table, pd.DataFrame(untuned)])
    return by_set(table[["set", "Model", "Metric", "Base", "Tuned", "Tuned − base", *TESTS]]).set_index("Model")


def comparisons(study: Study) -> pd.DataFrame:
    """The tuned models against each other; empty for a study of one model."""
    table = paired(study)
    table = table[~table["second"].str.endswith(" base")]
    table = table.rename(columns={"first": "First", "second": "Second", "Difference": "First − second"})
    return by_set(table[["set", "First", "Second", "Metric", "First − second", *TESTS]]).set_index("First")


def card_scores(study: Study, model: str) -> pd.DataFrame:
    """What a tuned model scored before and after tuning, and the difference with its interval."""
    table = paired(study)
    table = table[(table["first"] == f"{model} tuned") & (table["second"] == f"{model} base")]
    means = scores(study).set_index(["set", "model", "arm", "metric"])["mean"]
    for arm, name in (("base", "Base"), ("tuned", "Tuned")):
        table[name] = [f"{means[row['set'], model, arm, row['metric']]:.2f}" for _, row in table.iterrows()]
    return by_set(table[["set", "Metric", "Base", "Tuned", "Difference"]]).set_index("Metric")


def baselines(study: Study) -> pd.DataFrame:
    """The scores of replies by simple rules; `(SD)` over draws where a reply is drawn."""
    table = pd.read_csv(study.path("score", "baselines.csv"))
    shown = table[["set"]].assign(Reply=table["predictor"].map(BASELINE_NAMES))
    for metric, name in METRIC_NAMES.items():
        spread = ["" if math.isnan(sd) else f" ({sd:.2f})" for sd in table[f"{metric}_sd"]]  # NaN where nothing is drawn
        shown[name] = [f"{mean:.2f}{sd}" for mean, sd in zip(table[metric], spread, strict=True)]
    return by_set(shown).set_index("Reply")


def diagnostics(study: Study) -> pd.DataFrame:
    """Length, repetition and emptiness of each arm's replies, beside the references'."""
    table = pd.read_csv(study.path("score", "diagnostics.csv"))
    table["Replies of"] = (table["model"] + " " + table["arm"]).replace("reference reference", "the references")
    lengths = table[["characters_mean", "characters_sd"]].to_numpy()
    table["Characters, mean (SD)"] = [f"{mean:.1f} ({sd:.1f})" for mean, sd in lengths]
    for name, title in DIAGNOSTIC_NAMES.items():
        table[title] = table[name].map("{:.1%}".format if name in SHARES else "{:.3f}".format)
    return by_set(table[["set", "Replies of", "Characters, mean (SD)", *DIAGNOSTIC_NAMES.values()]]).set_index("Replies of")


def interval(row: pd.Series) -> str:
    """`mean [lo, hi]`; without the interval where there is none (few dialogs, or equal ones)."""
    return around(row["mean"], row["lo"], row["hi"])


def around(value: float, lo: float, hi: float) -> str:
    """`value [lo, hi]`; without the interval, or a dash, where a number is missing."""
    if math.isnan(value):
        return "—"
    return (f"{value:.2f}" if math.isnan(lo) else f"{value:.2f} [{lo:.2f}, {hi:.2f}]").replace("-0.00", "0.00").replace("-", "−")


def kappa_text(row: Any) -> str:
    """A row's `kappa` with its interval and n; where there is none, its `note`, which says why, or a dash."""
    if not math.isnan(row.kappa):
        return f"{around(row.kappa, row.lo, row.hi)}, n = {row.n}"
    return row.note if isinstance(row.note, str) else "—"


def other_scores(study: Study) -> pd.DataFrame:
    """The scores that stand beside the paper's measure, with intervals."""
    table = scores(study)
    names = other_names(study.language)
    table = table[table["metric"].isin(list(names))]
    table = table.assign(shown=[interval(row) for _, row in table.iterrows()])
    wide = table.pivot(index=["set", "model", "arm"], columns="metric", values="shown")
    order = table[["set", "model", "arm"]].drop_duplicates()
    wide = wide.loc[pd.MultiIndex.from_frame(order), list(names)].rename(columns=names).rename_axis(columns=None)
    return by_set(wide.reset_index()).rename(columns={"model": "Model", "arm": "Arm"}).set_index("Model")


def signatures(study: Study) -> pd.DataFrame:
    """The settings behind each kind of score."""
    table = scores(study).drop_duplicates("metric")
    names = METRIC_NAMES | other_names(study.language)
    return pd.DataFrame({"score": [names[metric] for metric in table["metric"]], "signature": table["signature"]}).set_index(
        "score"
    )
