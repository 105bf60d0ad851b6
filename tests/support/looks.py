"""What a page looks like, asked of a browser: what sticks out, which words are broken, what a checker of accessibility finds."""

import os
from pathlib import Path
from typing import Any

WIDTHS = (390, 820, 1280, 1440)
STICKING_OUT = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, .skip, thead')
  && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(one => one.outerHTML.slice(0, 120))"""
BROKEN = """(() => {
  const broken = [], range = document.createRange();
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest('code, svg, .skip, [hidden]')) continue;
    for (const word of node.data.matchAll(/[A-Za-z]{2,}/g)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const tops = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
      if (tops.size > 1) broken.push(word[0]);
    }
  }
  return broken;
})()"""


def photograph(page: Any, name: str, scheme: str, tmp_path: Path) -> Path:
    """A picture of what is in view, at every width; returns their folder: MI_LLM_SCREENSHOTS, or one of the test's own."""
    folder = Path(os.environ.get("MI_LLM_SCREENSHOTS", tmp_path / "screenshots"))
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=folder / f"{name}.{width}.{scheme}.png")
    return folder


def problems(page: Any) -> list[str]:
    """What runs out of the page's width, at the width that it has."""
    sticking = list(page.evaluate(STICKING_OUT))
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        sticking.append("the page scrolls sideways")
    return sticking


def serious_faults(page: Any, axe: Any) -> list[tuple[str, str]]:
    """What a checker of accessibility calls serious or critical, contrast among it: rule and element."""
    violations = axe.run(page).response["violations"]
    return [
        (violation["id"], violation["nodes"][0]["html"][:160])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]
