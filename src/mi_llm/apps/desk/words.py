"""What the desk says, in the study's two languages; what is coded is worded in the codebook."""

from mi_llm.codebook.coding import Behaviour, Text

KEYS = {
    Behaviour.INFORMATION: "g",
    Behaviour.PERSUADE_WITH: "w",
    Behaviour.QUESTION: "q",
    Behaviour.SIMPLE: "s",
    Behaviour.COMPLEX: "c",
    Behaviour.AFFIRM: "a",
    Behaviour.SEEK: "b",
    Behaviour.EMPHASIZE: "e",
    Behaviour.PERSUADE: "p",
    Behaviour.CONFRONT: "f",
}

WORDS = {
    "desk": Text("Coding desk", "编码台"),
    "missing": Text("Not here", "没有这一页"),
    "missing_more": Text(
        "This page does not exist, or it is not yours. Open your personal link again.",
        "这一页不存在，或者不归你。请重新打开你的专属链接。",
    ),
    "entering": Text("Signing in", "正在进入"),
    "go_on": Text("Continue", "继续"),
    "script": Text("Coding needs JavaScript; please allow it for this page.", "编码需要 JavaScript，请为本页启用。"),
    "your_packets": Text("Your transcripts", "你的文本"),
    "your_packets_more": Text(
        "Please code them in this order, each in one sitting if you can. Do not discuss a transcript before all its raters "
        "have finished it.",
        "请按此顺序编码，尽量一次编完一份。所有编码者完成之前，请勿讨论。",
    ),
    "exercises": Text("Training", "练习"),
    "exercises_more": Text(
        "Coded by experts: after each volley you see their codes.", "专家已编码：每编完一次发言，即可看到专家的编码。"
    ),
    "packet": Text("Transcript", "文本"),
    "not_begun": Text("not started", "未开始"),
    "begun": Text("started", "进行中"),
    "is_done": Text("done", "已完成"),
    "client": Text("Client", "来访者"),
    "counselor": Text("Counselor", "咨询师"),
    "volley": Text("Volley {n}", "第 {n} 次发言"),
    "turns": Text("Conversation", "对话"),
    "volleys": Text("{a} of {b} volleys", "已编码 {a} / {b} 次发言"),
    "globals": Text("{a} of {b} globals", "整体评分 {a} / {b}"),
    "globals_title": Text("Globals", "整体评分"),
    "palette": Text("Behaviors", "行为"),
    "nothing": Text("Nothing to code", "无可编码"),
    "undo": Text("Undo", "撤销"),
    "next": Text("Next uncoded", "下一处未编码"),
    "compare": Text("Compare with the gold codes", "与专家比对"),
    "rules": Text("Rules", "规则"),
    "rules_of": Text("Rules of the codebook", "编码规则"),
    "close": Text("Close", "关闭"),
    "volley_rule": Text(
        "In a volley, each behavior counts once, and at most one reflection and one persuasion count: complex replaces "
        "simple, persuading with permission replaces persuading. Code what you see; the program does the counting.",
        "一次发言之内每种行为只计一次，反映、劝说各至多一个：复杂反映盖过简单反映，经许可的劝说盖过劝说。看到什么就编什么，计数由程序完成。",
    ),
    "help": Text(
        "A letter assigns a code to the marked volley; the same letter removes it. ↓ or j: next volley, ↑ or k: previous, "
        "Enter: next "
        "uncoded, n: nothing to code, u: undo, ?: rules.",
        "字母键为当前发言编码，再按取消。↓ 或 j 下一次发言，↑ 或 k 上一次，Enter 下一处未编码，n 无可编码，u 撤销，? 规则。",
    ),
    "globals_more": Text(
        "Your impression of the whole session. Start from 3 unless something speaks for a higher or lower rating.",
        "对整场会谈的印象。没有理由高或低时，从 3 开始。",
    ),
    "note": Text("Note", "备注"),
    "note_more": Text("For the coordinator; no names, please.", "给协调人看；请勿写姓名。"),
    "guess": Text("Your guess", "你的猜测"),
    "guess_more": Text(
        "Last of all: what do you take this transcript for? The answers show how far the coding was blind; they change no code.",
        "最后请猜一猜：这份文本来自哪里？答案用来说明编码在多大程度上不知来源，不会改动任何编码。",
    ),
    "guess_base": Text("A model before tuning", "微调前的模型"),
    "guess_tuned": Text("A tuned model", "微调后的模型"),
    "guess_real": Text("A real session between people", "人与人的真实会谈"),
    "guess_unsure": Text("I cannot tell", "看不出来"),
    "finish": Text("Finish this transcript", "完成此份"),
    "finish_more": Text(
        "Possible when each counselor volley is coded, each global is rated, and, outside the training, the guess is made.",
        "咨询师的每次发言都已编码、四项整体评分都已给出、并已作出猜测（练习除外）后即可完成。",
    ),
    "reopen": Text("Reopen", "重新打开"),
    "finished": Text("This transcript is finished. Thank you.", "此份已完成，谢谢。"),
    "reopen_more": Text("You may reopen it until all its raters have finished.", "在所有编码者完成之前，你可以重新打开。"),
    "saved": Text("Saved", "已保存"),
    "saving": Text("Saving…", "正在保存…"),
    "offline": Text("Offline · {n} to be saved", "离线 · {n} 处待保存"),
    "unkept": Text(
        "{n} to be saved, and this browser cannot keep them: do not close the page", "{n} 处待保存，浏览器无法暂存，请勿关闭本页"
    ),
    "signed_out": Text(
        "{n} not saved: open your personal link again; nothing is lost", "{n} 处未保存：请重新打开你的专属链接，编码不会丢失"
    ),
    "rejected": Text("{n} not saved: please reload the page and tell the coordinator", "{n} 处未保存：请刷新本页并告知协调人"),
    "conflict": Text("changed in another window or on another device", "已在别的窗口或设备上改动"),
    "here": Text("Here", "此处"),
    "there": Text("There", "别处"),
    "keep_here": Text("Keep the version here", "保留此处"),
    "take_there": Text("Use the other version", "采用别处"),
    "refused": Text("was not changed", "未改动"),
    "reason_unknown": Text("the transcript has no such item", "没有这一处"),
    "reason_done": Text("the transcript is finished", "此份已完成"),
    "reason_closed": Text("all its raters have finished, so it can no longer change", "所有编码者都已完成，不能再改"),
    "reason_incomplete": Text("something is still uncoded", "尚有未编码之处"),
    "reason_shown": Text("its gold code was already shown", "已看过专家编码"),
    "unreadable": Text("the desk cannot read it, please tell the coordinator", "编码台无法读取，请告知协调人"),
    "dismiss": Text("Understood", "知道了"),
    "uncoded": Text("not coded", "未编码"),
    "nothing_here": Text("nothing to code", "无可编码"),
    "undone": Text("Undone", "已撤销"),
    "gold": Text("Gold", "专家"),
    "agree": Text("Agreed", "一致"),
    "missed": Text("Missed", "漏编"),
    "extra": Text("Not in the gold codes", "多编"),
    "result": Text("Your agreement with the gold codes", "你与专家的一致性"),
    "result_all": Text("Over the training transcripts that you finished", "已完成的练习合计"),
    "behaviour": Text("Behavior", "行为"),
    "kappa": Text("Cohen's κ", "Cohen κ"),
    "share": Text("Equal", "相同"),
    "within": Text("Within 1", "相差至多 1"),
    "difference": Text("Difference", "差"),
    "pooled": Text("All behaviors", "全部行为"),
    "no_kappa": Text(
        "κ is undefined if both coders judge every volley alike.", "两者对每次发言的判断都相同且无变化时，无法计算 κ。"
    ),
    "coordinator": Text("Coordinator", "协调人"),
    "progress": Text("Progress", "进度"),
    "reliability": Text("Reliability", "信度"),
    "reliability_more": Text(
        "From transcripts that all their raters have finished; codes of others are not shown. Counted by the codebook's rules "
        "for a volley.",
        "只用所有编码者都已完成的文本；此前不显示任何编码。按编码规则计。",
    ),
    "none_yet": Text("No transcript has been finished by two raters yet.", "还没有两位编码者都完成的文本。"),
    "export": Text("Export", "导出"),
    "export_more": Text(
        "Finished by all their raters: {a} of {b}. The export contains these.",
        "{b} 份文本中，{a} 份已由所有编码者完成；导出只含这些。",
    ),
    "packets_done": Text("{a} of {b} done", "完成 {a} / {b}"),
    "over": Text("Transcripts: {packets}, volleys: {volleys}", "{packets} 份文本，{volleys} 次发言"),
    "mean": Text("mean", "均值"),
    "notes": Text("Notes", "备注"),
    "no_notes": Text("None on finished transcripts.", "已完成的文本没有备注。"),
}

# what the page's script says
SCRIPT = (
    "saved", "saving", "offline", "unkept", "signed_out", "rejected", "conflict", "here", "there", "keep_here", "take_there",
    "refused", "reason_unknown", "reason_done", "reason_closed", "reason_incomplete", "reason_shown", "unreadable", "dismiss",
    "uncoded", "nothing_here", "undone", "gold", "agree", "missed", "extra", "volley", "note", "guess", "volleys", "globals",
)  # fmt: skip
