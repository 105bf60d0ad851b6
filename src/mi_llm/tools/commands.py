"""The commands of `mi-llm tool`: each reads its options, calls its function, and prints the tables. Imports wait for the call."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

Csv = Annotated[bool, typer.Option("--csv", help="print CSV")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Tongue = Annotated[str, typer.Option(help="what a word is: zh, en, or another of src/mi_llm/language/")]
Speaker = Annotated[list[str] | None, typer.Option(help="LABEL=client, counselor, drop, or speech; may be repeated")]
Column = Annotated[list[str] | None, typer.Option(help="speaker, text, dialog, or turn=HEADING of a table; may be repeated")]


def tell(tables: "dict[str, pd.DataFrame]", *, csv: bool, json: bool) -> None:
    """Print some tables, by their titles."""
    from mi_llm.tools.output import shown

    print(shown(tables, "csv" if csv else "json" if json else "table"), end="")


def score(
    replies: Annotated[Path, typer.Argument(help="text, JSON Lines, or LLaMA-Factory's generated_predictions.jsonl")],
    references: Annotated[Path | None, typer.Argument(help="the same, unless the first file holds the references too")] = None,
    *,
    language: Tongue = "zh",
    csv: Csv = False,
    json: Json = False,
) -> None:
    """Compare replies with their references: BLEU, chrF, and ROUGE, with intervals."""
    from mi_llm.tools.score import read_pairs, score_replies

    pairs = read_pairs(replies, references)
    table = score_replies(pairs.replies, pairs.references, pairs.dialogs, language=language)
    dialogs = len(set(pairs.dialogs))
    about = f"of {dialogs} dialogs; 95% intervals over dialogs" if dialogs else "; 95% intervals as if each were a dialog"
    tell({f"{replies}: {len(pairs.replies)} replies {about}".replace(" ;", ";"): table}, csv=csv, json=json)


def code(
    transcripts: Annotated[Path, typer.Argument(help="a file or folder of transcripts, in any usual format")],
    *,
    speaker: Speaker = None,
    column: Column = None,
    model_url: Annotated[str, typer.Option(help="code by a language model at this address, which gets the transcripts")] = "",
    model: Annotated[str, typer.Option(help="that model's name")] = "",
    out: Annotated[Path | None, typer.Option(help="folder for codes.csv and globals.csv")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before sending the transcripts to the model")] = False,
    csv: Csv = False,
    json: Json = False,
) -> None:
    """Code transcripts by MITI: from words alone, or by a language model. CSV and JSON give the codes, volley by volley."""
    from mi_llm.corpora.own.importing import settings_of
    from mi_llm.corpora.own.understand import read_transcripts
    from mi_llm.miti.summary import worth
    from mi_llm.problem import Problem
    from mi_llm.tools.code import by_transcript, code_transcripts, code_with_model, write_codes

    if bool(model_url) != bool(model) or (model_url and out is None):
        raise Problem("mi-llm tool code", "a part of --model-url, --model, --out", "all three of them", "add the others")
    dialogs, repairs = read_transcripts(transcripts, **settings_of(speaker or [], column or []))
    codes, ratings = code_with_model(dialogs, model_url, model, out, yes=yes) if model and out else code_transcripts(dialogs)
    if out:
        write_codes(codes, ratings, out)
    if csv or json:
        tell({"codes": codes} if ratings.empty else {"codes": codes, "globals": ratings}, csv=csv, json=json)
        return
    coder = f"the language model {model}" if model else "the lexical coder, which knows words and not meaning"
    changed = sum(repairs.counts.values())
    title = f"{transcripts}: {len(dialogs)} transcripts, {changed} repairs; coded by {coder} ({worth(codes['rater'])})"
    tell({title: by_transcript(codes, ratings).dropna(axis="columns", how="all")}, csv=False, json=False)


def agree(
    codes: Annotated[list[Path], typer.Argument(help="CSV: rater, packet, volley, code; or rater, packet, code, rating")],
    *,
    csv: Csv = False,
    json: Json = False,
) -> None:
    """Say how far raters agree: κ, α, ICC, with intervals, and why a value does not exist. The codes may have any names."""
    from mi_llm.tools.agree import agreement, read_codes

    given, rated = read_codes(codes)
    tell({f"{', '.join(map(str, codes))}: agreement, 95% intervals over packets": agreement(given, rated)}, csv=csv, json=json)


def tables(
    codes: Annotated[Path, typer.Argument(help="codes.csv, or its folder with globals.csv and consensus.csv")],
    key: Annotated[Path, typer.Argument(help="CSV: packet, arm, and perhaps source")],
    *,
    transcripts: Annotated[Path | None, typer.Option(help="file or folder of the packets' transcripts, for Table 4")] = None,
    speaker: Speaker = None,
    column: Column = None,
    csv: Csv = False,
    json: Json = False,
) -> None:
    """Make Tables 4 and 6 for any arms, by the raters' mean and, if there is a consensus.csv, by consensus."""
    from mi_llm.corpora.own.importing import settings_of
    from mi_llm.corpora.own.understand import read_transcripts
    from mi_llm.miti.summary import worth
    from mi_llm.statistics import FEWEST
    from mi_llm.tools.tables import arm_tables, read_coded, read_key, wide

    given, rated, decisions = read_coded(codes)
    settings = settings_of(speaker or [], column or [])
    dialogs = read_transcripts(transcripts, **settings)[0] if transcripts else []
    made = arm_tables(given, rated, read_key(key), dialogs, decisions)
    if not (csv or json):
        about = f"mean (SD) [95% interval]; fewer than {FEWEST} transcripts have their values instead, too like ones nothing"
        about += f"; {known}" if (known := worth({*map(str, given["rater"]), *map(str, rated["rater"])})) else ""
        shown = {f"{title}: {about}": wide(table) for title, table in made.items() if title != "Table 4"}
        made = shown | {title: table for title, table in made.items() if title == "Table 4"}
    tell(made, csv=csv, json=json)
