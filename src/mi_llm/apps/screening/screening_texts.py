"""What the screening pages say, in the study's two languages."""

from mi_llm.codebook.coding import Text

WORDS = {
    "screening": Text("Screening", "筛查"),
    "lead": Text(
        "Read the original beside its rewriting, and decide whether the rewriting is kept. Every decision is written at once.",
        "对照原文阅读改写的对话，决定是否保留。每个决定立即写入文件。",
    ),
    "written_to": Text("Decisions:", "决定写入："),
    "far": Text("{decided} of {all} decided", "已决定 {decided} / {all}"),
    "begin": Text("Begin with the next undecided dialog", "从下一段未决定的对话开始"),
    "all_done": Text(
        "Every dialog of this list is decided. Now run the stage again:", "本列表的对话都已决定。现在请重新运行该阶段："
    ),
    "show_open": Text("undecided", "未决定"),
    "show_remarks": Text("with remarks", "有备注"),
    "show_keep": Text("kept", "保留"),
    "show_drop": Text("dropped", "舍弃"),
    "show_fix": Text("corrected", "修改"),
    "show_all": Text("all", "全部"),
    "half_0": Text("for one person", "一人筛查"),
    "half_1": Text("first of two persons", "两人中的第一人"),
    "half_2": Text("second of two persons", "两人中的第二人"),
    "number": Text("No.", "序号"),
    "dialog": Text("Dialog", "对话"),
    "remarks": Text("Remarks", "备注"),
    "proposal": Text("Proposed", "建议"),
    "decision": Text("Decided", "决定"),
    "who": Text("Your initials", "你的姓名缩写"),
    "who_missing": Text(
        "Please enter your initials: who decides is written beside the decision.", "请填写姓名缩写：决定旁会写明由谁作出。"
    ),
    "reason": Text("Reason", "理由"),
    "keep": Text("keep", "保留"),
    "drop": Text("drop", "舍弃"),
    "fix": Text("correct", "修改"),
    "next": Text("next", "下一段"),
    "previous": Text("previous", "上一段"),
    "undo": Text("take back", "撤回"),
    "index": Text("All dialogs", "全部对话"),
    "original": Text("Original", "原文"),
    "rewriting": Text("Rewriting", "改写"),
    "no_original": Text("The original is not here.", "此处没有原文。"),
    "no_remarks": Text("The checks saw nothing.", "程序检查未见问题。"),
    "decided_by": Text("Decided: {decision} ({who}, {when})", "已决定：{decision}（{who}，{when}）"),
    "correct_it": Text(
        "Correct the rewriting: one volley per line, after its label", "修改改写的对话：每行一次发言，前面写明说话人"
    ),
    "save_fix": Text("Keep as corrected", "按修改保留"),
    "keys": Text(
        "Keys: k keep, d drop, n next, p previous, u take back, r reason",
        "按键：k 保留，d 舍弃，n 下一段，p 上一段，u 撤回，r 理由",
    ),
    "client": Text("Client", "来访者"),
    "counselor": Text("Counselor", "咨询师"),
    "earlier_page": Text("Earlier", "上一页"),
    "later_page": Text("Later", "下一页"),
    "missing": Text("Not here", "没有这一页"),
    "form": Text("form", "格式"),
    "incoherent": Text("incoherent", "不连贯"),
    "repetitive": Text("repetitive", "重复"),
    "irrelevant": Text("irrelevant", "不相关"),
    "unsafe": Text("unsafe", "不安全"),
    "personal data": Text("personal data", "个人信息"),
    "against MI": Text("against MI", "违背 MI"),
}
