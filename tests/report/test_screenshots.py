"""Every page of a run, photographed at four widths in both themes and languages, to be looked at one by one.

The pictures go into the folder that MI_LLM_SCREENSHOTS names; without it, into the test's own.
"""

from pathlib import Path
from typing import Any

import pytest
from looks import WIDTHS, photograph

from mi_llm.certificate.certify import certify
from mi_llm.report.page import PAGES
from mi_llm.study import Study

SITE = (*(f"report/{name}" for name in PAGES), "audit/index", "screen/dialogs", "certificate/index")
GROUND = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_photographed_and_has_the_theme_that_was_asked_for(
    scored: Study, browser: Any, tmp_path: Path, scheme: str
) -> None:
    certify(scored)
    context = browser.new_context(color_scheme=scheme)
    for name in SITE:
        for end in ("", ".zh"):
            page = context.new_page()
            page.goto((scored.folder / f"{name}{end}.html").resolve().as_uri())
            ground = sum(page.evaluate(GROUND)) / 3
            assert ground < 60 if scheme == "dark" else ground > 200, name
            folder = photograph(page, f"{name.replace('/', '-')}{end}", scheme, tmp_path)
            page.close()
    context.close()
    assert len(list(folder.glob(f"*.{scheme}.png"))) == len(SITE) * 2 * len(WIDTHS)
