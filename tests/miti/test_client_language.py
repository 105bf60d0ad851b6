"""Client language by arm: means with intervals, or few values."""

import pandas as pd
import pytest

from mi_llm.codebook.client import ClientCoding, Talk
from mi_llm.miti.client_language import COLUMNS, SHARE, row, rows
from mi_llm.study import Study


def test_an_interval_stays_within_the_measures_range(study: Study) -> None:
    (share,) = row(study, ("tiny-glm4", "tuned", "lexical", SHARE), [0.0, 1.0, 0.0, 1.0, 0.5])
    assert list(share) == COLUMNS
    assert share["mean"] == pytest.approx(0.5)
    assert (share["lo"], share["hi"]) == (0, 1)
    assert share["values"] == ""


def test_of_fewer_than_five_transcripts_all_values_are_shown(study: Study) -> None:
    talks = [{1: Talk.CHANGE, 3: Talk.SUSTAIN}, {1: Talk.CHANGE}, {1: Talk.NEUTRAL}]
    codings = [ClientCoding("lexical", str(number), heard) for number, heard in enumerate(talks)]
    measures = pd.DataFrame(rows(study, "tiny-glm4", "base", codings), columns=COLUMNS).set_index("measure")
    assert list(measures.index) == [SHARE], "no talk is long enough for a slope"
    assert (measures.loc[SHARE, "n"], measures.loc[SHARE, "mean"], measures.loc[SHARE, "values"]) == (2, 0.75, "0.50; 1.00")
    assert pd.isna(measures.loc[SHARE, "lo"])
