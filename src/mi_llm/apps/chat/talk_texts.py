"""What the page says, in both languages; the fixed text about danger stands in `help.yaml`."""

from mi_llm.apps.chat import guard
from mi_llm.codebook.coding import Text

WAYS = ("tuned", "base", "beside", "blind")

WORDS = {
    "title": Text("Talk with a counselor model", "与咨询模型对话"),
    "brand": Text("demo chat", "对话演示"),
    "skip": Text("To the message field", "跳到输入框"),
    "not_care": Text("A research demo, not care.", "研究演示，不是心理服务。"),
    "not_a_person": Text("A model answers, not a person.", "回应来自语言模型，不是真人。"),
    "model_is": Text("Model:", "模型："),
    "comma": Text(", ", "，"),
    "stop_mark": Text(".", "。"),
    "not_kept": Text("Text is not kept.", "文字不保存。"),
    "help": Text("Help lines", "求助热线"),
    "in_danger": Text("In danger, or thinking of suicide? Call now:", "有危险，或者想到自杀？现在就打电话："),
    "possible": Text(
        "If things are harder than a talk with a program can help with: people answer here.",
        "如果心里的事比和程序聊天能帮上的更难，这些地方有真人接听。",
    ),
    "menu": Text("Menu", "菜单"),
    "about": Text("What this is", "说明"),
    "theme": Text("Light or dark", "浅色或深色"),
    "new": Text("New talk", "新对话"),
    "close": Text("Close", "关闭"),
    "lead": Text(
        "The models were tuned on motivational interviewing about everyday habits: sleep, food, exercise, phone use. "
        "Talk as yourself, or as one of the clients below.",
        "这些模型用动机式访谈的对话微调过，谈的是日常习惯：睡眠、饮食、运动、手机。你可以说自己的事，也可以扮演下面的一位来访者。",
    ),
    "model": Text("Model", "模型"),
    "no_models": Text("The model server offers no models.", "模型服务没有提供模型。"),
    "server_away": Text("The model server does not answer.", "模型服务没有应答。"),
    "reload": Text("Try again", "重试"),
    "way": Text("Who answers", "谁来回应"),
    "way_tuned": Text("Tuned", "微调后"),
    "way_base": Text("Base", "微调前"),
    "way_beside": Text("Side by side", "前后对照"),
    "way_blind": Text("Blind", "盲评"),
    "way_tuned_more": Text("the model after tuning", "用动机式访谈微调过的模型"),
    "way_base_more": Text("the same model before tuning", "微调之前的同一个模型"),
    "way_beside_more": Text("base and tuned answer each message", "每句话两个模型都回应"),
    "way_blind_more": Text("both, unnamed; you vote", "不告诉你谁是谁，由你投票"),
    "cards": Text("Who you are", "你是谁"),
    "yourself": Text("Yourself", "你自己"),
    "yourself_more": Text("without a role", "不扮演"),
    "card_reason": Text("Underlying reason", "深层原因"),
    "card_willing": Text("Ready to change, at first", "一开始的改变意愿"),
    "of_ten": Text("of 10", "（满分 10）"),
    "card_hint": Text(
        "Tell the reason only when the counselor asks about it or understands it.", "深层原因不要主动说，被问到、被理解时再说。"
    ),
    "your_role": Text("You play", "你扮演"),
    "talk": Text("Talk", "对话"),
    "say": Text("Your message", "你的话"),
    "say_here": Text("Write here …", "在这里写……"),
    "send": Text("Send", "发送"),
    "stop": Text("Stop", "停止"),
    "keys": Text("Enter sends, Shift+Enter starts a new line, Esc stops", "回车发送，Shift+回车换行，Esc 停止"),
    "you": Text("You", "你"),
    "counselor": Text("Counselor", "咨询模型"),
    "base": Text("Base", "微调前"),
    "tuned": Text("Tuned", "微调后"),
    "side_0": Text("Reply A", "回应甲"),
    "side_1": Text("Reply B", "回应乙"),
    "coming": Text("The reply is coming", "正在回应"),
    "edit": Text("Edit", "修改"),
    "editing": Text("Everything after this message will be replaced.", "发送后，这句之后的内容会被替换。"),
    "cancel": Text("Cancel", "取消"),
    "again": Text("Another reply", "换一个回应"),
    "copy": Text("Copy", "复制"),
    "copied": Text("Copied", "已复制"),
    "export": Text("Download this talk:", "导出这段对话："),
    "vote": Text("Which counselor was better?", "哪一位咨询得更好？"),
    "vote_left": Text("A", "甲"),
    "vote_right": Text("B", "乙"),
    "vote_tie": Text("Tie", "一样好"),
    "vote_neither": Text("Neither", "都不好"),
    "vote_text": Text("Save the text of this talk with my vote", "把这段对话的文字和投票一起保存"),
    "voted": Text("Saved. A was {0}, B was {1}.", "已保存。甲是{0}，乙是{1}。"),
    "vote_first": Text("Vote to see which is which and to download the talk.", "投票后可以看到谁是谁，也可以导出。"),
    "guarded": Text("Your message was not given to the model.", "这条消息没有交给模型。"),
    "elsewhere": Text("Other regions", "其他地区"),
    "numbers_checked": Text(
        "The numbers were compared with stored web pages, not called; they may have changed.",
        "号码与存档网页核对过，没有试拨，可能已有变动。",
    ),
    "fixed_text": Text("This text is fixed; no model wrote it.", "这段话是固定的文字，不是模型写的。"),
    "go_on": Text(
        "If this was a misunderstanding or part of a role, the talk can go on below.",
        "如果是误会，或者只是在扮演角色，可以在下面继续对话。",
    ),
    "withheld_encourages": Text(
        "This reply is not shown: it read like encouragement to hurt oneself or others.",
        "这条回应没有显示：读起来像在鼓励伤害自己或他人。",
    ),
    "withheld_doses": Text(
        "This reply is not shown: it mentioned doses of medicine, which only a doctor may prescribe.",
        "这条回应没有显示：它谈到用药剂量，这只能由医生来说。",
    ),
    "withheld_human": Text(
        "This reply is not shown: the model claimed to be a human therapist. It is a program.",
        "这条回应没有显示：模型自称真人咨询师。它只是程序。",
    ),
    "withheld_blames": Text(
        "This reply is not shown: it read like blame. What happened is not explained by a program's judgment of you.",
        "这条回应没有显示：读起来像在责怪人。程序的评判不能说明你的事。",
    ),
    "withheld_isolates": Text(
        "This reply is not shown: it advised keeping a secret or seeking no other help. Do tell people you trust.",
        "这条回应没有显示：它劝人保密或不找别人帮忙。请告诉你信任的人。",
    ),
    "withheld_promises": Text(
        "This reply is not shown: it promised what nobody can promise.",
        "这条回应没有显示：它作了谁也不能作的保证。",
    ),
    "withheld_diagnoses": Text(
        "This reply is not shown: it gave a diagnosis, which only a doctor may do.",
        "这条回应没有显示：它下了诊断，这只能由医生来做。",
    ),
    "stopped": Text("stopped", "已停止"),
    "length": Text("cut at the length limit", "到了长度上限"),
    "failed_away": Text("The model server does not answer.", "模型服务没有应答。"),
    "failed_busy": Text("Too many people are using the model. Try again in a moment.", "现在用的人太多，请稍后再试。"),
    "failed_long": Text("The talk is too long for the model. Start a new one.", "对话太长，模型接不下去了，请开始新对话。"),
    "failed_refused": Text(
        "The model server refuses this message; the talk continues without it. Use other words.",
        "模型服务不接受这条消息，之后的对话不会带上它。请换个写法再发。",
    ),
    "failed_failed": Text("The reply was interrupted.", "回应中断了。"),
    "failed_silent": Text("The model returned no text.", "模型什么也没说。"),
    "not_sent": Text("Not sent:", "没有发出："),
    "why_offline": Text("this page cannot reach its server", "页面连不上服务器"),
    "why_401": Text("please sign in again", "请重新登录"),
    "why_404": Text("the talk no longer exists; start a new one", "这段对话已经不在了，请开始新对话"),
    "why_409": Text("this is not possible now", "现在不能这样做"),
    "why_413": Text("the message is too long", "消息太长"),
    "why_422": Text("the message contains characters that are not text", "消息里有不是文字的字符"),
    "why_429": Text("too fast; wait a moment", "太快了，请等一会儿"),
    "why_502": Text("the model server does not answer", "模型服务没有应答"),
    "why_503": Text("it could not be saved", "没能保存"),
    "why_other": Text("something went wrong", "出了问题"),
    "script": Text("This page needs JavaScript; please allow it here.", "本页需要 JavaScript，请为本页启用。"),
    "token": Text("Access token", "访问口令"),
    "token_more": Text("This chat is open to people who were given a token.", "持有口令的人才能使用。"),
    "token_wrong": Text("That is not the token.", "口令不对。"),
    "enter": Text("Enter", "进入"),
    "about_1": Text(
        "This page shows how fine-tuning on motivational interviewing changes a language model, and lets people compare. "
        "It gives no diagnosis, no treatment and no advice, and nobody watches it.",
        "这个页面用来展示动机式访谈微调对语言模型的作用，并供人比较。它不诊断、不治疗、不提供建议，也没有人在后台看着。",
    ),
    "about_2": Text(
        "Nothing you write is saved. A talk stays in this server's memory until you start another, for at most two hours after "
        "your last message, and is never logged. The model server sees it in order to reply. A vote is saved "
        "without the text, unless you tick the box.",
        "保存什么：你写的都不保存。对话只在服务器内存里，开始新对话就删除，最迟在最后一条消息两小时后删除，"
        "也不写进日志。模型服务要看到文字才能回应。投票会保存，但不含文字，除非你勾选。",
    ),
    "about_3": Text(
        "A guard reads every message before a model does. If it plainly detects self-harm, harm to others, or abuse, "
        "it shows fixed text and help lines, and no model is called; if it is less sure, help lines stand under the reply. "
        "It is a list of expressions and a small learned program: it misses other words and languages, and it sometimes "
        "stops harmless messages.",
        "每条消息在交给模型之前，先由一道守门程序检查。明显谈到自伤、伤人或受虐，就显示固定的文字和求助电话，不调用模型；"
        "不太确定时，在回应下面列出求助电话。它由一份中英文说法的清单和一个学习得来的小程序组成：会漏掉别的说法和语言，也会偶尔误拦。",
    ),
    "about_4": Text(
        "Replies are checked too: one that encourages harm, speaks of doses, claims to be a human therapist, blames, isolates, "
        "promises, or diagnoses is not shown. Models still say wrong and unkind things. Do not act on what they say.",
        "回应也会检查：鼓励伤害、谈用药剂量、自称真人咨询师、责怪人、让人孤立、作保证、下诊断的不显示。模型仍然会说错话、说不合适的话，请不要照着做。",
    ),
}
FAULTS = tuple(f"withheld_{fault}" for fault in guard.FAULTS)
SCRIPT = (
    "you", "counselor", "base", "tuned", "side_0", "side_1", "coming", "edit", "again", "copy", "copied", "stopped", "length",
    "voted", "comma", "stop_mark", "way_beside", "way_blind", "not_sent",
    "failed_away", "failed_busy", "failed_long", "failed_refused", "failed_failed", "failed_silent",
    "why_offline", "why_401", "why_404", "why_409", "why_413", "why_422", "why_429", "why_502", "why_503", "why_other",
)  # fmt: skip
