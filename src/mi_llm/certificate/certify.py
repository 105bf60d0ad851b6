"""The end of a run: compare it with the committed one, and write the result down.

Reads the outputs, the committed lock and reference. Writes `<out>/certificate/codecheck.yml` for programs and
`<out>/certificate/index.html` for people, in English and Chinese. They hold time and machine, so DVC does not track them.
"""

import sys
from collections import Counter
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mi_llm import storage
from mi_llm.audit.verdict import VERDICTS
from mi_llm.certificate.circumstances import Circumstances, circumstances
from mi_llm.certificate.codecheck import Gap, Person, codechecker, configuration, gaps, source, written
from mi_llm.compare import LOCK, Comparison, compare, lock_of, reference_of
from mi_llm.study import Study

CHINESE = {
    "identical": "一致",
    "within tolerance": "在容差内",
    "differs": "不同",
    "reproduced": "已复现",
    "close": "接近",
    "inconsistent": "自相矛盾",
    "possible": "可能",
    "not recomputable": "无法重算",
}
MEANING = {
    "reproduced": "重算结果与论文印出的每一位数字相同",
    "close": "重算结果与论文相差不超过 2%，或不超过末位数字的一个单位（计数不适用）",
    "differs": "重算结果与论文不同",
    "inconsistent": "与论文自身的其他数字或其公开的数据相矛盾，不可能成立",
    "possible": "无法重算，但在一项本可能不通过的检验中与论文的其他数值相容",
    "not recomputable": "所需的数据或某个词的含义没有公开；若仍有可说之处，见核查页面的备注",
}


def page(study: Study, comparison: Comparison, where: Circumstances, checker: Person | None, missing: list[Gap]) -> str:
    """The certificate for people, as HTML that loads nothing from a network."""
    environment = Environment(loader=PackageLoader("mi_llm.certificate", "."), undefined=StrictUndefined, autoescape=True)
    style = (resources.files("mi_llm.report") / "page.css").read_text(encoding="utf-8")
    pages = [path for path in (study.path("report", "index.html"), study.path("audit", "index.html")) if path.exists()]
    return environment.get_template("certificate.html.jinja").render(
        study=study,
        comparison=comparison,
        where=where,
        checker=checker,
        missing=missing,
        chinese=CHINESE,
        source=source(study),
        meaning=MEANING,
        against=lock_of(study) if comparison.against == "lock" else reference_of(study),
        tally=Counter(claim.verdict for claim in comparison.claims),
        verdicts=VERDICTS,
        pages=[path.relative_to(study.folder).as_posix() for path in pages],
        style=Markup(style),  # noqa: S704 — our own file
    )


def certify(study: Study, checker: str | None = None) -> int:
    """Write the certificate, print the comparison; returns the exit status: 0 if nothing differs (or is committed), else 1."""
    person, comparison = codechecker(checker), compare(study)
    if comparison is None:
        print(f"nothing to compare with: git has no {lock_of(study)} yet", file=sys.stderr)
        return 0
    where = circumstances()
    content = configuration(study, comparison, where, person)
    folder: Path = study.folder / "certificate"
    storage.write_text(folder / "codecheck.yml", written(content))
    storage.write_text(folder / "index.html", page(study, comparison, where, person, gaps(content)))
    show(comparison)
    print(f"certificate: {folder}/index.html, and for programs {folder}/codecheck.yml")
    print(comparison.sentence)
    return 1 if comparison.count("differs") else 0


def show(comparison: Comparison) -> None:
    """Print what is not identical, and the claims whose verdict changed."""
    for verdict in ("within tolerance", "differs"):
        for output in comparison.outputs:
            if output.verdict == verdict:
                print(f"  {verdict}: {output.path}: {'; '.join(output.reasons)}")
    if comparison.unknown:
        print(f"  no reference: {', '.join(comparison.unknown)}")
    for line in comparison.packages:
        print(f"  other packages than {LOCK} has: {line}")
    if comparison.claims:
        print(f"{len(comparison.claims)} claims of the paper: {comparison.agreeing} judged as in the reference")
