"""What the page says around a talk, in both languages: models, cards, keys, codes and their counts, votes, experiments."""

from mi_llm.codebook.coding import Text

PAGE_WORDS = {
    "own_model": Text("Your own model", "用你自己的模型"),
    "own_model_more": Text(
        "Any server that speaks OpenAI's protocol will do. It offers the base model as NAME and the tuned one as NAME+mi:",
        "任何支持 OpenAI 协议的服务都可以：微调前的模型名为 NAME，微调后的为 NAME+mi。",
    ),
    "speaks_chinese": Text(
        "These models were tuned on Chinese. A reply to English may make no sense; what a client offers to say is Chinese.",
        "这些模型用中文微调，对英文的回应可能没有意义。",
    ),
    "in_chinese": Text(
        "The models read and write Chinese, and nothing here translates their replies.", "模型只读写中文，本页不翻译它们的回应。"
    ),
    "codes_in_english": Text("The codes under each reply say in English what it does.", "回应下面的编码说明它做了什么。"),
    "starters": Text("You could say", "可以这样说"),
    "sent_in_chinese": Text("The Chinese sentence is sent.", "发送的是中文原句。"),
    "thinking": Text("thinking, {n} s", "正在想，{n} 秒"),
    "kept": Text("Sent when the reply is complete:", "回应完成后发送："),
    "kept_cancel": Text("Take back", "取回"),
    "latest": Text("To the latest", "跳到最新"),
    "all_keys": Text(
        "Enter sends (queued while a reply is coming) · Shift+Enter new line · ↑ edits your last message · Esc stops",
        "回车发送（回应未完时排队）· Shift+回车换行 · ↑ 修改上一句 · Esc 停止",
    ),
    "end_title": Text("End this talk?", "结束这段对话？"),
    "end_more": Text(
        "A new talk deletes this one from the server's memory. Download it first if you want to keep it.",
        "开始新对话，就会从服务器内存里删除这一段。想留下的话，请先导出。",
    ),
    "end_yes": Text("End it", "结束"),
    "end_no": Text("Go on with it", "继续这段"),
    "take": Text("Keep this talk:", "留下这段对话："),
    "as_text": Text("text", "文本"),
    "as_print": Text("print", "打印"),
    "codes": Text("MI codes", "动机式访谈编码"),
    "codes_in_text": Text(
        "In brackets: MI codes, which the lexical coder gave from words alone. The report says how far it agrees with experts.",
        "方括号内：词语编码者只凭词语给出的动机式访谈编码。它与专家的一致程度见报告。",
    ),
    "no_code": Text("no MI code", "无编码"),
    "code_kappa": Text(
        "The lexical coder gave this code from words alone. On single volleys it agrees with experts at κ = {v} [{lo}, {hi}]; "
        "1 is full agreement, 0 is chance. Measured on 67 English sessions of AnnoMI; in Chinese it is not known.",
        "这是词语编码者只凭词语给出的编码。逐次发言与专家的一致性为 κ = {v} [{lo}, {hi}]；1 为完全一致，0 相当于碰运气。"
        "在 AnnoMI 的 67 场英文会谈上测得，中文的未知。",
    ),
    "code_unmeasured": Text(
        "The lexical coder gave this code from words alone. How far it agrees with experts on this code was not measured.",
        "这是词语编码者只凭词语给出的编码。它在这一编码上与专家的一致性没有测过。",
    ),
    "score_auc": Text(
        "How often this score, counted from words, is higher in a session of high quality than in one of low: {v} [{lo}, {hi}]; "
        "0.50 is chance. Measured on 67 English sessions of AnnoMI; in Chinese it is not known.",
        "按词语计得的这项分数，在高质量会谈中高于低质量会谈的比例：{v} [{lo}, {hi}]；0.50 相当于碰运气。"
        "在 AnnoMI 的 67 场英文会谈上测得，中文的未知。",
    ),
    "limits_of": Text(
        "MITI: fair from {fair}, good from {good} (expert opinion).", "MITI：{fair} 起为及格，{good} 起为良好（专家意见）。"
    ),
    "formula": Text("Formula: {f}", "算法：{f}"),
    "adherent": Text("MI-adherent.", "符合动机式访谈。"),
    "nonadherent": Text("MI-nonadherent.", "不符合动机式访谈。"),
    "tally": Text("What the replies do, counted so far", "到目前为止，回应做了什么"),
    "short_RQ": Text("reflections per question", "反映与提问之比"),
    "short_MINA": Text("MI-nonadherent", "不符合的行为"),
    "tally_more": Text(
        "Counted from words by the lexical coder; touch a name to see what it means and how far to trust it. The technical and "
        "relational scores need a person who rates the whole session.",
        "由词语编码者按词语计数；点名称可看含义和可信程度。技术、关系两项整体评分需要人对整场会谈作判断。",
    ),
    "tally_by_chance": Text(
        "Good and fair are the manual's thresholds for what people count: counted from words, these scores told sessions of high "
        "quality from those of low quality no better than chance.",
        "良好、及格是手册为人工计数定的界限：按词语计得的这几项分数，区分高质量与低质量会谈并不比碰运气更好。",
    ),
    "reply_count": Text("Replies", "回应数"),
    "good": Text("good", "良好"),
    "fair": Text("fair", "及格"),
    "below fair": Text("below fair", "未及格"),
    "vote_wait": Text("You can vote after {n} rounds. So far: {a}.", "满 {n} 轮后可以投票，现在 {a} 轮。"),
    "vote_all": Text("Better in all", "总的来说更好"),
    "criterion_understood": Text("Understood me better", "更理解我"),
    "criterion_respected": Text("Respected my choice more", "更尊重我的选择"),
    "criterion_helped": Text("Helped me more", "对我更有帮助"),
    "vote_why": Text(
        "Why? One sentence; it is saved with the vote. No names, please.", "为什么？一句话即可，会和投票一起保存，请勿写姓名。"
    ),
    "vote_send": Text("Vote", "投票"),
    "vote_then": Text(
        "After voting you can still undo it, until you look which is which.", "投票后，在查看谁是谁之前，都可以撤回。"
    ),
    "vote_saved": Text("Your vote is saved:", "投票已保存："),
    "vote_undo": Text("Undo the vote", "撤回投票"),
    "vote_reveal": Text("Show which is which", "看谁是谁"),
    "revealed": Text("A was {0}, B was {1}.", "甲是{0}，乙是{1}。"),
    "participant": Text("Your participant id", "你的参与者编号"),
    "consent": Text("Consent", "知情同意"),
    "agree": Text("I have read this and agree.", "我已阅读并同意。"),
    "agree_first": Text("Give your participant id and agree above first", "请先在上面填写编号并勾选同意"),
    "is_kept": Text("Text is kept for a study.", "文字为研究保存。"),
    "study_talk": Text("study", "研究"),
    "why_403": Text("this participant id is not known", "没有这个参与者编号"),
}


def size(parameters: int) -> Text:
    """How large a model is, in words."""
    english = f"{parameters / 1e9:.1f} billion" if parameters >= 999_950_000 else f"{parameters / 1e6:.1f} million"
    chinese = f"{parameters / 1e8:.1f} 亿" if parameters >= 1e8 else f"{parameters / 1e4:.0f} 万"
    return Text(f"{english} parameters", f"{chinese}参数")


PAGE_SCRIPT = (
    "thinking", "codes", "no_code", "good", "fair", "below fair", "short_RQ", "short_MINA", "vote_wait", "vote_saved",
    "vote_left", "vote_right", "vote_tie", "vote_neither", "vote_all", "criterion_understood", "criterion_respected",
    "criterion_helped", "revealed", "agree_first", "study_talk", "why_403",
)  # fmt: skip
