"""The end of a run: compare it with the committed one, and write the result down.

Reads the outputs, the committed lock and reference. Writes `<out>/certificate/codecheck.yml` for programs and
`<out>/certificate/index.html` and `index.zh.html` for people. They hold time and machine, so DVC does not track them.
"""

import re
import sys
from pathlib import Path

from mi_llm import storage
from mi_llm.audit.verdict import CHINESE, VERDICTS
from mi_llm.certificate.circumstances import Circumstances, circumstances
from mi_llm.certificate.codecheck import Gap, Person, codechecker, configuration, gaps, source, written
from mi_llm.compare import LOCK, Comparison, compare, lock_of, reference_of
from mi_llm.frame.pages import SUFFIXES, address, environment, style
from mi_llm.study import Study

HERE = "certificate/index"
REASONS = {  # what compare.py says of an output or a package, in Chinese
    r"(.+) has different bytes": "{} 的字节不同",
    r"(.+) is gone": "{} 不在了",
    r"(.+) is new": "{} 是新的",
    r"(.+) is empty": "{} 是空的",
    r"it is missing": "这个输出不在此处",
    r"it has no reference in (.+)": "{} 中没有它的参考值",
    r"claim (\S+): here (.+), in the reference (.+)": "论断 {}：此处为{}，参考为{}",
    r"(.+): here (.+), in the reference (.+)": "{}：此处为 {}，参考为 {}",
    r"(.+) \(the lock has (.+)\) made (.+)": "{}（锁文件为 {}）产生了 {}",
}


def page(
    study: Study, comparison: Comparison | None, where: Circumstances, checker: Person | None, *, missing: list[Gap], lang: str
) -> str:
    """The certificate for people in a language, as HTML that loads nothing; links lead to the run's pages that are here."""
    notable = [output for output in comparison.outputs if output.verdict != "identical"] if comparison else []
    verdicts = [output.verdict for output in notable]
    worst = "differs" if "differs" in verdicts else "within tolerance" if verdicts else "identical" if comparison else "nothing"
    against_lock = comparison is not None and comparison.against == "lock"
    return (
        environment(__package__)
        .get_template("certificate.html.jinja")
        .render(
            lang=lang,
            title=study.report.title_zh if lang == "zh" else study.title,
            notice=study.report.notice_zh if lang == "zh" else study.report.notice,
            here=HERE,
            address=address,
            linked=lambda there: there == HERE or (study.folder / f"{there}.html").exists(),
            study=study,
            comparison=comparison,
            worst=worst,
            notable=notable,
            where=where,
            checker=checker,
            missing=missing,
            claim_verdicts=CHINESE if lang == "zh" else {verdict: verdict for verdict in VERDICTS},
            source=source(study, lang),
            lock_file=lock_of(study),
            reference_file=reference_of(study),
            compared_with=lock_of(study) if against_lock else reference_of(study),
            said=in_chinese if lang == "zh" else str,
            style=style(),
        )
    )


def in_chinese(reason: str) -> str:
    """A reason in Chinese; unchanged where `REASONS` does not have its like."""
    for pattern, said in REASONS.items():
        if match := re.fullmatch(pattern, reason):
            return said.format(*((CHINESE | {"not there": "空缺"}).get(group, group) for group in match.groups()))
    return reason


def certify(study: Study, checker: str | None = None) -> int:
    """Write the certificate, print the comparison; returns the exit status: 0 if nothing differs (or is committed), else 1.

    Where nothing is committed, the page says so, and there is no file for programs.
    """
    person, comparison, where = codechecker(checker), compare(study), circumstances()
    folder: Path = study.folder / "certificate"
    (folder / "codecheck.yml").unlink(missing_ok=True)  # of another run
    missing: list[Gap] = []
    if comparison is not None:
        content = configuration(study, comparison, where, person)
        missing = gaps(content)
        storage.write_text(folder / "codecheck.yml", written(content))
    for lang, suffix in SUFFIXES.items():
        storage.write_text(folder / f"index{suffix}.html", page(study, comparison, where, person, missing=missing, lang=lang))
    if comparison is None:
        print(f"nothing to compare with: git has no {lock_of(study)} yet; what ran: {folder}/index.html", file=sys.stderr)
        return 0
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
