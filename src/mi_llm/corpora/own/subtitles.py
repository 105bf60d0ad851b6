"""Subtitles (SRT, WebVTT): the cues' texts as lines; a cue's voice (`<v Counselor>`) is its label."""

import io
import re

import webvtt
from webvtt.errors import MalformedFileError

from mi_llm.corpora.own.labeled import Page, lines_of
from mi_llm.problem import Problem

ARROW = re.compile(r"^\s*[\d:.,]+\s*-->", re.MULTILINE)
DASH = re.compile(r"^\s*[-–—]\s*", re.MULTILINE)


def page(text: str, file: str) -> Page:
    """The cues as lines; raises Problem where not every cue could be read."""
    vtt = text.lstrip().startswith("WEBVTT")
    kind = "WebVTT" if vtt else "SRT"
    try:
        cues = list(webvtt.from_buffer(io.StringIO(text.replace("\r\n", "\n")), format="vtt" if vtt else "srt"))
    except (MalformedFileError, ValueError, IndexError) as error:
        raise Problem(file, f"not {kind} ({error})", "subtitles", "export them again as SRT or WebVTT, or as text") from None
    times = len(ARROW.findall(text))
    if len(cues) != times or not cues:
        found = f"{len(cues)} cues can be read, of {times} lines with times"
        raise Problem(file, found, f"{kind} subtitles", "export them again as SRT or WebVTT, or as text")
    spoken = []
    for number, cue in enumerate(cues, 1):
        words = DASH.sub("", cue.text)
        spoken.append((f"{file}, cue {number}", f"{cue.voice}：{words}" if cue.voice else words))
    return lines_of(spoken, file)
