"""The codebook of the manual evaluation (paper, Methods, Manual Evaluation and Table 2), told once: four globals, ten behaviors,
the summary scores and their thresholds. Prompts, coding desk, coders and tables read it here; it reads and writes nothing.

Source: Moyers, Manuel & Ernst, Motivational Interviewing Treatment Integrity Coding Manual 4.2.1 (2015); see Moyers et al. 2016,
doi:10.1016/j.jsat.2016.01.001. The wording is ours and short: whoever codes for a study should have read the manual. Codes are
those of the claims about Table 6.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Literal, TypeVar

from mi_llm.language import language

Text = language.Text  # the codebook's words stand in both languages of the pages
Rating = Literal["good", "fair", "below fair"]


class Global(StrEnum):
    """An impression of the whole session, from 1 to 5."""

    CULTIVATING = "CCT"
    SOFTENING = "SST"
    EMPATHY = "EMP"
    PARTNERSHIP = "PAR"


class Behavior(StrEnum):
    """What a counselor does in one utterance; counted over the session."""

    INFORMATION = "GI"
    PERSUADE_WITH = "PwP"
    QUESTION = "Q"
    SIMPLE = "SR"
    COMPLEX = "CR"
    AFFIRM = "AF"
    SEEK = "SEEK"
    EMPHASIZE = "EA"
    PERSUADE = "PERS"
    CONFRONT = "CONF"


@dataclass(frozen=True)
class GlobalEntry:
    """A global as raters see it; `anchors[n - 1]` says what a rating of n looks like."""

    code: Global
    name: Text
    anchors: tuple[Text, Text, Text, Text, Text]


@dataclass(frozen=True)
class BehaviorEntry:
    """A behavior as raters see it; `adherent` is None where it is neither MI-adherent nor non-adherent."""

    code: Behavior
    name: Text
    adherent: bool | None
    rule: Text


@dataclass(frozen=True)
class Coded:
    """One utterance, and the behavior a coder saw in it, if any."""

    behavior: Behavior | None
    text: str


GLOBALS = (
    GlobalEntry(
        Global.CULTIVATING,
        Text("Cultivating Change Talk", "培养改变语句"),
        (
            Text("Ignores what the client says in favor of change.", "来访者说到想改变，也不接。"),
            Text("Responds to it sometimes; misses most opportunities.", "偶尔接一接，多数机会放过。"),
            Text("Responds to it often; misses some opportunities.", "常常接住，仍漏掉一些。"),
            Text("Responds to it throughout and asks for more of it.", "自始至终听得见，并请来访者多说。"),
            Text(
                "Throughout, and with skill, helps it grow stronger and become a plan.",
                "自始至终，而且熟练地让它更有分量，走向行动。",
            ),
        ),
    ),
    GlobalEntry(
        Global.SOFTENING,
        Text("Softening Sustain Talk", "软化持续语句"),
        (
            Text("Each response leads to more reasons against change.", "每次回应都引出更多不改变的理由。"),
            Text("Mostly dwells on the reasons against change.", "大多停在不改变的理由上。"),
            Text("Often dwells on them, but sometimes leads away.", "较常停在那里，有时能带开。"),
            Text("Usually does not pursue them once they are heard.", "听到之后，一般不再纠缠。"),
            Text(
                "With the counselor's help they clearly weaken, or the counselor never evokes them.",
                "在咨询师的引导下明显减弱，或从头到尾不曾被引出。",
            ),
        ),
    ),
    GlobalEntry(
        Global.EMPATHY,
        Text("Empathy", "共情"),
        (
            Text("Shows almost no interest in the client's view.", "对来访者怎么看几乎没有兴趣。"),
            Text("Tries sometimes, but misunderstands or understands only part.", "偶有尝试，听偏或只听懂一部分。"),
            Text("Really tries, and sometimes understands.", "认真去听，有时听懂。"),
            Text("Tries throughout, and understands well what the client says.", "一直在听，说出口的都能听懂。"),
            Text("Also understands what the client means but has not yet said.", "连没说出口的意思也能听懂。"),
        ),
    ),
    GlobalEntry(
        Global.PARTNERSHIP,
        Text("Partnership", "合作"),
        (
            Text("Acts as the expert and leads alone.", "自以为最懂，一人主导。"),
            Text("Cooperates only where little depends on it.", "只在无关紧要处合作。"),
            Text("Takes up the client's ideas only sometimes and without enthusiasm.", "来访者的想法时收时不收，不大热心。"),
            Text(
                "Leads together with the client, whose influence shows in the session.",
                "与来访者一同主导，谈话看得出来访者的影响。",
            ),
            Text(
                "Actively shares the lead; the client largely shapes the session.",
                "主动交出主导，来访者决定谈话成什么样。",
            ),
        ),
    ),
)

BEHAVIORS = (
    BehaviorEntry(
        Behavior.INFORMATION,
        Text("Giving information", "给予信息"),
        None,
        Text(
            "Gives a fact or a professional opinion, without urging change. If you are unsure between this and persuading with "
            "permission, choose this. Greetings, thanks, talk about oneself, and the session's agenda get no code.",
            "告知事实或专业看法，说完即止，不催人改变。与“经许可的劝说”难分时归此类。寒暄、致谢、谈自己、会谈安排都不编码。",
        ),
    ),
    BehaviorEntry(
        Behavior.PERSUADE_WITH,
        Text("Persuading with permission", "经许可的劝说"),
        None,
        Text(
            "Persuades a client who asked for advice, agreed to it, or is told that they may ignore it. The permission may "
            "come before or after the advice; a new topic or a commanding tone ends it.",
            "来访者主动求教、已经点头，或明说可以不听时的劝说。许可在建议之前之后都算；换了话题或变成吩咐，许可即止。",
        ),
    ),
    BehaviorEntry(
        Behavior.QUESTION,
        Text("Asking questions", "提问"),
        None,
        Text(
            "Any question, open or closed; several in one volley count once. Asking what the client knows is a question; "
            "asking what "
            "they think of what they were just told is seeking collaboration. A reproach with a question mark is confronting.",
            "各种提问，开放或封闭；一次发言多问只计一次。问知道什么，是提问；问对刚才所说怎么看，是寻求协作。打着问号的责备归对质。",
        ),
    ),
    BehaviorEntry(
        Behavior.SIMPLE,
        Text("Simple reflections", "简单反映"),
        None,
        Text(
            "Repeats or rephrases what the client said and adds little. If you are unsure between simple and complex, choose "
            "simple.",
            "把来访者的话递回去，添得不多。与复杂反映难分时归此类。",
        ),
    ),
    BehaviorEntry(
        Behavior.COMPLEX,
        Text("Complex reflections", "复杂反映"),
        None,
        Text(
            "Reflects with much added meaning: an unnamed feeling, both sides of an ambivalence, an image, a direction. A "
            "volley has "
            "one reflection; it is complex if any part of it is.",
            "递回去时添了许多：没点明的情绪、两面并举、一个比喻、话的去向。一次发言只计一个反映，其中有一处复杂即为复杂。",
        ),
    ),
    BehaviorEntry(
        Behavior.AFFIRM,
        Text("Affirming", "肯定"),
        True,
        Text(
            "Sincerely names something good about this client: an ability, an effort, an intention, a quality. Praise that would "
            "fit anybody gets no code. If it is both an affirmation and a reflection, choose affirmation.",
            "由衷地点出这位来访者自己的好处：会什么、试过什么、想要什么、是怎样的人。放在谁身上都行的夸奖不编码。又像反映时归肯定。",
        ),
    ),
    BehaviorEntry(
        Behavior.SEEK,
        Text("Seeking collaboration", "寻求协作"),
        True,
        Text(
            "Lets the client share in a decision: on the task, the goal, the next topic, whether to hear advice, or what to "
            "think of it.",
            "让来访者一同定夺：做什么、去哪里、先谈什么、要不要听建议、听了怎么看。",
        ),
    ),
    BehaviorEntry(
        Behavior.EMPHASIZE,
        Text("Emphasizing autonomy", "强调自主性"),
        True,
        Text(
            "Says that the choice and the responsibility are the client's. Confidence that they will succeed is not this code.",
            "明说由来访者选择、由来访者承担。只说“你做得到”不属此类。",
        ),
    ),
    BehaviorEntry(
        Behavior.PERSUADE,
        Text("Persuading", "劝说"),
        False,
        Text(
            "Pushes an opinion or an action: says what to do, argues for it, tells only one side. The client did not ask, and "
            "nothing reminds them that the choice is theirs.",
            "推着人往一边走：告诉怎么做、为之辩护、只说有利的一面；没人请教，也没提醒选择在来访者。",
        ),
    ),
    BehaviorEntry(
        Behavior.CONFRONT,
        Text("Confronting", "对质"),
        False,
        Text(
            "Openly opposes the client: contradicts, reproaches, threatens, belittles, lectures, disbelieves. "
            "Takes precedence over question and persuading.",
            "明白无误地与来访者对立：顶撞、责备、恐吓、贬低、训话、不相信。先于提问和劝说。",
        ),
    ),
)

Code = TypeVar("Code", Behavior, Global)


@dataclass(frozen=True)
class Summary(Generic[Code]):
    """A summary score (Table 2): the sum of the codes of `top` over the sum of those of `bottom`, or over a number.

    Call it with the codes of one session: counts (a Counter: a behavior that was not seen is 0) or globals, or their means over
    raters.
    """

    code: str
    name: Text
    top: tuple[Code, ...]
    bottom: tuple[Code, ...] | int

    def __call__(self, codes: Mapping[Code, float]) -> float | None:
        """The score; None where the denominator is 0."""
        denominator = self.bottom if isinstance(self.bottom, int) else sum(codes[code] for code in self.bottom)
        return sum(codes[code] for code in self.top) / denominator if denominator else None

    def __str__(self) -> str:
        """The formula in codes."""
        numerator = " + ".join(self.top)
        if self.bottom == 1:
            return numerator
        denominator = str(self.bottom) if isinstance(self.bottom, int) else " + ".join(self.bottom)
        return " / ".join(f"({part})" if "+" in part else part for part in (numerator, denominator))


_REFLECTIONS = (Behavior.SIMPLE, Behavior.COMPLEX)
_ADHERENT = (Behavior.SEEK, Behavior.AFFIRM, Behavior.EMPHASIZE)
_NONADHERENT = (Behavior.CONFRONT, Behavior.PERSUADE)

REFLECTIONS = Summary("TR", Text("Total reflections", "反映总数"), _REFLECTIONS, 1)
COMPLEX_SHARE = Summary("CRR", Text("Complex reflection ratio", "复杂反映占比"), (Behavior.COMPLEX,), _REFLECTIONS)
REFLECTIONS_TO_QUESTIONS = Summary(
    "RQ", Text("Reflection-to-question ratio", "反映与提问之比"), _REFLECTIONS, (Behavior.QUESTION,)
)
TECHNICAL = Summary("TECH", Text("Technical global", "技术整体评分"), (Global.CULTIVATING, Global.SOFTENING), 2)
RELATIONAL = Summary("REL", Text("Relational global", "关系整体评分"), (Global.PARTNERSHIP, Global.EMPATHY), 2)
ADHERENT = Summary("MIA", Text("Total MI-adherent", "符合动机式访谈的行为总数"), _ADHERENT, 1)
NONADHERENT = Summary("MINA", Text("Total MI-nonadherent", "不符合动机式访谈的行为总数"), _NONADHERENT, 1)
ADHERENT_RATIO = Summary("ADH", Text("Total MI-adherent ratio", "符合行为占比"), _ADHERENT, _ADHERENT + _NONADHERENT)


@dataclass(frozen=True)
class Threshold:
    """The scores from which on a counselor counts as fair (basic competence) and as good (proficiency)."""

    fair: float
    good: float


THRESHOLDS = {  # by code of the summary; the manual calls them expert opinion. The paper's own ratio has none.
    TECHNICAL.code: Threshold(3, 4),
    RELATIONAL.code: Threshold(3.5, 4),
    REFLECTIONS_TO_QUESTIONS.code: Threshold(1, 2),
    COMPLEX_SHARE.code: Threshold(0.4, 0.5),
}


def rating(value: float | None, threshold: Threshold) -> Rating | None:
    """How good a score is; None for a score that does not exist."""
    if value is None:
        return None
    return "good" if value >= threshold.good else "fair" if value >= threshold.fair else "below fair"


def volley(behaviors: Iterable[Behavior | None]) -> frozenset[Behavior]:
    """The behaviors that a volley counts for: each once, at most one reflection and one persuasion (manual, section E.1.a).

    A complex reflection replaces a simple one. The manual allows one kind of persuasion in a volley and leaves open which: here
    permission covers all of it, so persuading with permission replaces persuading.
    """
    seen = {behavior for behavior in behaviors if behavior}
    if Behavior.COMPLEX in seen:
        seen.discard(Behavior.SIMPLE)
    if Behavior.PERSUADE_WITH in seen:
        seen.discard(Behavior.PERSUADE)
    return frozenset(seen)
