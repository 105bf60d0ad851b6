// The page of a talk: what is said comes from the server and is put into the page as text, never as HTML.
import { composing } from "/static/composing.js";
import { events } from "/static/stream.js";

const at = (id) => document.getElementById(id);
const words = JSON.parse(at("main").dataset.words);
const voteRounds = Number(at("main").dataset.voteRounds);
const sizes = JSON.parse(at("main").dataset.sizes);
const field = at("say");
const PEEK = 1 / 12; // of the window's height, in which what follows the latest round is seen
let talk = null; // as the server shows it
let busy = false; // a message is on its way or replies are coming
let since = 0; // when it was sent, in milliseconds
let editing = null; // the round that is being edited
let kept = null; // a message to be sent when the replies are complete

function make(tag, name, text) {
  const found = document.createElement(tag);
  if (name) found.className = name;
  if (text) found.textContent = text;
  return found;
}

function act(text, does) {
  const button = make("button", "", text);
  button.type = "button";
  button.addEventListener("click", does);
  return button;
}

// ---- the server

async function ask(path, body, method = "POST") {
  const options = body === undefined ? { method } : { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error(words.why_offline);
  }
  if (!answer.ok) throw new Error(words[`why_${answer.status}`] ?? words.why_other);
  return answer;
}

function complain(error) {
  at("problem").textContent = error ? `${words.not_sent} ${error.message}` : "";
  at("problem").hidden = !error;
}

const remembered = {
  get: () => { try { return sessionStorage.getItem("talk"); } catch { return null; } },
  set: (id) => { try { id ? sessionStorage.setItem("talk", id) : sessionStorage.removeItem("talk"); } catch { /* then a reload starts a new talk */ } },
};

// ---- what is shown

const two = () => talk.sides.length === 2;
const nameOf = (side) => (talk.sides[side] ? words[talk.sides[side]] : words[`side_${side}`]);

function showTalk() {
  at("setup").hidden = talk !== null;
  at("talk").hidden = talk === null;
  at("new").hidden = talk === null;
  document.body.className = talk === null ? "" : two() ? "two" : "one";
  showModel();
  for (const card of document.querySelectorAll(".card")) card.hidden = talk === null || card.dataset.profile !== talk.profile;
  at("rounds").replaceChildren(...(talk?.rounds ?? []).map(showRound));
  if (at("coded")) at("coded").hidden = talk?.sides.includes(null) ?? false; // a hidden side has no codes
  showStarters();
  showTally();
  showEnd();
}

// Which model answers and how large it is; before a talk, the one that is chosen.
function showModel() {
  const model = talk ? talk.model : at("model")?.value;
  if (!at("answering")) return;
  const way = talk && (talk.way === null ? words.study_talk : two() ? words[`way_${talk.way}`] : words[talk.sides[0]]);
  at("answering").hidden = !model;
  at("which").textContent = [model, way].filter(Boolean).join(words.comma);
  at("size").textContent = sizes[model] ? `${words.comma}${sizes[model]}${words.stop_mark}` : "";
}

// Whether the talk has come to an answer to danger: no time for play or votes.
function toldOfDanger() { return talk?.rounds.at(-1)?.found.length > 0; }

// The sentences of the chosen client, beside the message field; not under an answer to danger, which is no play.
function showStarters() {
  const profile = talk ? talk.profile : new FormData(at("setup")).get("profile");
  at("starters").hidden = !profile || toldOfDanger() || field.value !== "" || editing !== null;
  for (const list of document.querySelectorAll(".starters")) list.hidden = list.dataset.profile !== profile;
}

const codeName = (code) => at(`code-${code}`).querySelector("h2").firstChild.textContent.trim();

function showTally() {
  const counted = talk?.tally?.filter(Boolean) ?? [];
  at("tally").hidden = !counted.some((side) => Object.values(side.counts).some(Boolean));
  if (at("tally").hidden) return;
  for (const cell of at("tally").querySelectorAll("[data-side]")) {
    const side = counted[cell.dataset.side];
    cell.hidden = !side;
    if (!side) continue;
    const { count, score } = cell.closest("tr").dataset;
    if (count) cell.querySelector(".value").textContent = side.counts[count];
    else if (score) showScore(cell, side.scores[score]);
    else cell.textContent = two() ? nameOf(Number(cell.dataset.side)) : "";
  }
  const line = ["RQ", "MINA"].map((code) => `${words[`short_${code}`]}: ${counted.map(({ scores }, side) => `${two() ? `${nameOf(side)} ` : ""}${figure(scores[code].value)}`).join(", ")}`);
  at("tally-line").textContent = line.join(" · ");
}

const figure = (value) => (value === null ? "–" : Number.isInteger(value) ? String(value) : value.toFixed(2));

function showScore(cell, { value, rating }) {
  cell.querySelector(".value").textContent = figure(value);
  if (!cell.querySelector("meter")) return;
  cell.querySelector("meter").value = value ?? 0;
  cell.querySelector(".rating").textContent = rating === null ? "" : words[rating];
}

function showRound(round, place) {
  const item = make("li", "round");
  const helped = (name) => {
    const card = at(name).content.cloneNode(true);
    // on the English page, lines that are answered in Chinese come from among the others
    const chinese = card.querySelector(".far [data-region=cn]");
    if (chinese && /\p{Script=Han}/u.test(round.client)) card.querySelector(".far").before(chinese);
    return card;
  };
  const client = make("div", "client");
  const who = make("div", "who");
  who.append(make("span", "", words.you), act(words.edit, () => edit(place)));
  client.append(who, make("div", "words", round.client));
  item.append(client);
  if (round.found.length) {
    item.classList.add("unsent");
    for (const danger of round.found) item.append(helped(`found-${danger}`));
  } else {
    const replies = make("div", "replies");
    talk.sides.forEach((arm, side) => replies.append(showReply(side, round.replies[side] ?? { text: "", finish: "", why: "", codes: [] })));
    item.append(replies);
    for (const danger of round.help ?? []) item.append(helped(`near-${danger}`));
  }
  return item;
}

function showReply(side, reply) {
  const box = make("div", "reply");
  if (talk.sides[side]) box.dataset.arm = talk.sides[side];
  box.append(make("div", "who", two() ? nameOf(side) : words.counselor));
  const said = make("div", "words");
  said.lang = at("main").dataset.language;
  said.append(document.createTextNode(reply.text));
  box.append(said);
  if (!reply.finish) box.querySelector(".who").append(make("span", "thinking"));
  finishReply(box, reply);
  return box;
}

function finishReply(box, reply) {
  box.classList.toggle("coming", reply.finish === "");
  for (const part of box.querySelectorAll(`.note, .acts, .codes${reply.finish ? ", .thinking" : ""}`)) part.remove();
  box.querySelector(".words").hidden = reply.finish !== "" && !reply.text;
  const note = { withheld: words[`withheld_${reply.why}`], failed: words[`failed_${reply.why}`], stopped: words.stopped, length: words.length }[reply.finish];
  if (note) box.append(make("p", "note", note));
  if (reply.finish === "stop" && talk.tally?.length) box.append(showCodes(reply.codes));
  if (reply.finish && reply.text) {
    const acts = make("div", "acts");
    const copy = act(words.copy, async () => {
      await navigator.clipboard.writeText(reply.text);
      copy.textContent = words.copied;
      setTimeout(() => (copy.textContent = words.copy), 1500);
    });
    if (navigator.clipboard) acts.append(copy);
    box.append(acts);
  }
}

// What the lexical coder sees in a reply; a touch on a code says what it means and how far to trust it.
function showCodes(codes) {
  const row = make("div", "codes");
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", words.codes);
  for (const code of codes) {
    const chip = make("button", "chip", codeName(code));
    chip.type = "button";
    chip.dataset.code = code;
    chip.classList.toggle("measured", at(`code-${code}`).dataset.kappa !== undefined);
    chip.classList.toggle("against", at(`code-${code}`).dataset.against !== undefined);
    chip.setAttribute("popovertarget", `code-${code}`);
    row.append(chip);
  }
  if (!codes.length) row.append(make("span", "soft small", words.no_code));
  return row;
}

// How long one has waited for replies of which nothing has come.
function showWaiting() {
  const seconds = Math.floor((performance.now() - since) / 1000);
  for (const place of document.querySelectorAll(".reply.coming .thinking")) {
    const silent = !place.closest(".reply").querySelector(".words").textContent;
    place.textContent = busy && silent ? words.thinking.replace("{n}", seconds) : "";
  }
}

function showVote() {
  const rounds = talk?.rounds.filter((round) => round.replies.length && round.replies.every((reply) => reply.text)).length ?? 0;
  const open = talk?.way === "blind" && !talk.vote;
  at("vote").hidden = !(open && !busy && rounds >= voteRounds) || toldOfDanger();
  at("vote-wait").hidden = !(open && rounds < voteRounds);
  at("vote-wait").textContent = words.vote_wait.replace("{n}", voteRounds).replace("{a}", rounds);
  at("voted").hidden = !talk?.vote;
  if (!talk?.vote) return;
  const revealed = talk.sides[0] !== null;
  const side = { left: 0, right: 1 };
  const named = (choice) => words[`vote_${choice}`] + (revealed && choice in side ? ` (${words[talk.sides[side[choice]]]})` : "");
  const criteria = Object.entries(talk.vote.criteria).map(([name, choice]) => `${words[`criterion_${name}`]}: ${named(choice)}`);
  const told = [...criteria, `${words.vote_all}: ${named(talk.vote.choice)}`, talk.vote.reason && `“${talk.vote.reason}”`].filter(Boolean).join(" · ");
  const arms = revealed ? `${talk.sides.reduce((text, arm, place) => text.replace(`{${place}}`, words[arm]), words.revealed)} ` : "";
  at("voted-text").textContent = `${arms}${words.vote_saved} ${told}`;
  at("undo-vote").parentElement.hidden = revealed;
}

function showEnd() {
  const last = talk?.rounds.at(-1);
  const complete = talk !== null && !busy && talk.sides.every((_, side) => talk.rounds.some((round) => round.replies[side]?.text));
  showVote();
  at("export").hidden = !(complete && talk.sides.every(Boolean));
  if (!at("export").hidden) {
    at("as-text").href = `/talks/${talk.id}/text`;
    at("files").replaceChildren(...talk.sides.map((arm, side) => {
      const link = make("a", "", `${arm}.jsonl`);
      link.href = `/talks/${talk.id}/dialogs/${side}`;
      link.download = "";
      return link;
    }));
  }
  if (last && !busy && last.replies.length) {
    const again = act(words.again, () => speak(`/talks/${talk.id}/again`, {}));
    const item = at("rounds").lastElementChild;
    const row = (!two() && item.querySelector(".acts")) || item.appendChild(make("div", "acts"));
    row.append(again);
  }
  at("send").hidden = busy && talk !== null;
  at("stop").hidden = !busy || talk === null;
  showKept();
  showLatest();
}

function showKept() {
  at("kept").hidden = kept === null;
  at("kept-text").textContent = kept ?? "";
}

// How far below the message field the talk's end lies: that of the latest round, or of the page while a vote is asked for.
function below() {
  const end = at("vote").hidden && at("rounds").lastElementChild;
  if (!end) return document.documentElement.scrollHeight - window.scrollY - window.innerHeight;
  return end.getBoundingClientRect().bottom + PEEK * window.innerHeight - (window.innerHeight - at("composer").offsetHeight);
}

function nearEnd() {
  return below() < 160;
}

function showLatest() {
  at("latest").hidden = talk === null || nearEnd();
}

function toEnd() {
  window.scrollBy({ top: below() });
}

function announce(text) {
  at("live").textContent = text;
}

// ---- what one does

async function send() {
  const text = field.value.trim();
  if (!text) return;
  if (busy) {
    if (talk === null || editing !== null) return;
    kept = kept === null ? text : `${kept}\n${text}`;
    write("");
    showKept();
    return;
  }
  if (await say(text, editing) === false && !field.value) write(text);
  field.focus({ preventScroll: true });
}

function write(text) {
  field.value = text;
  heed();
}

// What follows from what stands in the field.
function heed() {
  grow();
  const english = /[a-z]{2,}\s+[a-z]{2,}/i.test(field.value) && !/\p{Script=Han}/u.test(field.value);
  if (at("english")) at("english").hidden = !english;
  showStarters();
}

function wishes() {
  const chosen = new FormData(at("setup"));
  const profile = chosen.get("profile") || null;
  if (!at("participant")) return { model: chosen.get("model"), way: chosen.get("way"), profile };
  if (!at("agreed").checked || !at("participant").value.trim()) throw new Error(words.agree_first);
  return { participant: at("participant").value.trim(), agreed: true, profile };
}

// Say something to the model, beginning a talk where there is none; false if the server took no message.
async function say(text, from) {
  busy = true;
  since = performance.now();
  complain(null);
  try {
    if (talk === null) {
      const begun = await ask("/talks", wishes());
      talk = await begun.json();
      remembered.set(talk.id);
      for (const card of document.querySelectorAll(".card")) card.open = window.innerWidth > 700;
      showTalk();
    }
  } catch (error) {
    busy = false;
    complain(error);
    return false;
  }
  if (from !== null) talk.rounds.length = from;
  talk.rounds.push({ client: text, found: [], replies: [] });
  endEditing();
  if (field.value.trim() === text) write("");
  return speak(`/talks/${talk.id}/messages`, from === null ? { text } : { text, instead_of: from }, true);
}

// Send what was kept while the replies came; give it back where they failed, since it may not fit.
async function release() {
  const text = kept;
  if (text === null || talk === null || busy) return;
  kept = null;
  const last = talk.rounds.at(-1);
  const answered = last && !last.found.length && last.replies.every((reply) => reply.text);
  if (!(answered && (await say(text, null)))) {
    if (field.value) kept = text;
    else write(text);
  }
  showKept();
}

// Ask for replies to the last round, and show them as they come; false if the server took no message.
async function speak(path, body, fresh = false) {
  busy = true;
  since = performance.now();
  complain(null);
  const mine = talk;
  const round = talk.rounds.at(-1);
  const before = round.replies;
  round.replies = talk.sides.map(() => ({ text: "", finish: "", why: "", codes: [] }));
  showTalk();
  toEnd();
  announce(words.coming);
  let sent = false;
  try {
    const answer = await ask(path, body);
    sent = true;
    if (answer.headers.get("content-type").startsWith("application/json")) {
      round.found = (await answer.json()).found;
      round.replies = [];
      busy = false;
      showTalk();
      const card = at("rounds").lastElementChild.querySelector(".found");
      card.style.scrollMarginTop = `${document.querySelector(".top").offsetHeight + 16}px`;
      card.scrollIntoView({ block: "start" });
      announce(card.textContent.replace(/\s+/g, " "));
      release();
      return true;
    }
    round.help = (answer.headers.get("possible-danger") ?? "").split(" ").filter(Boolean);
    showTalk();
    const boxes = at("rounds").lastElementChild.querySelectorAll(".reply");
    for await (const event of events(answer)) {
      const reply = round.replies[event.side];
      const box = boxes[event.side];
      const text = box.querySelector(".words").firstChild;
      const follow = nearEnd();
      if (event.finish) {
        Object.assign(reply, { text: event.text, finish: event.finish, why: event.why, codes: event.codes ?? [] });
        if (event.tally) talk.tally[event.side] = event.tally;
        text.data = event.text;
        finishReply(box, reply);
      } else {
        if (event.whole) reply.text = text.data = "";
        reply.text += event.text;
        text.appendData(event.text);
      }
      if (follow) toEnd();
    }
  } catch (error) {
    if (!sent && talk === mine) {
      if (fresh) talk.rounds.pop();
      else round.replies = before;
      complain(error);
    }
  }
  if (talk !== mine) return sent; // another talk was begun meanwhile
  if (sent && round.replies.some((reply) => !reply.finish)) {
    await reload(); // the events ended before the replies
    if (talk?.id !== mine.id) return sent;
  } else {
    busy = false;
    const follow = nearEnd();
    showTalk();
    if (follow) toEnd();
  }
  announce(sent ? spoken() : "");
  release();
  return sent;
}

function spoken() {
  return [...(at("rounds").lastElementChild?.querySelectorAll(".reply") ?? [])]
    .map((box) => [...box.querySelectorAll(".who, .words, .note")].map((part) => part.textContent).join(" "))
    .join(". ");
}

async function fetched(id) {
  try {
    const answer = await fetch(`/talks/${encodeURIComponent(id)}`);
    if (answer.status === 404) remembered.set(null);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function breakOff(round) {
  for (const reply of round.replies) if (!reply.finish) Object.assign(reply, { finish: "failed", why: "failed" });
}

// Show the talk that this page had before it was reloaded; while replies are coming, look again.
async function reload() {
  const id = remembered.get();
  let mine = talk;
  do {
    const found = id && (await fetched(id));
    if (talk !== mine) return; // another talk was begun meanwhile
    const follow = !mine || nearEnd();
    if (found) mine = talk = found;
    else if (mine) breakOff(talk.rounds.at(-1));
    else return;
    busy = talk.rounds.at(-1)?.replies.some((reply) => !reply.finish) ?? false;
    since ||= performance.now();
    showTalk();
    if (follow) toEnd();
    if (busy) await new Promise((resolve) => setTimeout(resolve, 1000));
  } while (busy && talk === mine);
  release();
}

async function stop() {
  if (busy && talk) await ask(`/talks/${talk.id}/stop`, {}).catch(() => {});
}

function edit(place) {
  if (busy) return;
  editing = place;
  at("editing").hidden = false;
  write(talk.rounds[place].client);
  field.focus();
}

function endEditing() {
  editing = null;
  at("editing").hidden = true;
}

async function begin() {
  const old = talk?.id;
  await stop();
  talk = null;
  kept = null;
  busy = false;
  remembered.set(null);
  endEditing();
  complain(null);
  showTalk();
  window.scrollTo({ top: 0 });
  field.focus({ preventScroll: true });
  if (old) await ask(`/talks/${old}`, undefined, "DELETE").catch(() => {});
}

// Vote, undo the vote, or see which is which.
async function decide(path, body, method = "POST") {
  complain(null);
  try {
    const answer = await ask(`/talks/${talk.id}/${path}`, body, method);
    talk = await answer.json();
    showTalk();
    if (!at("voted").hidden) announce(at("voted-text").textContent);
    at(talk.vote ? "voted" : "vote").scrollIntoView({ block: "nearest" });
    // the button that was pressed is gone
    (!talk.vote ? at("vote").querySelector("input") : talk.sides[0] === null ? at("reveal") : at("voted")).focus({ preventScroll: true });
  } catch (error) {
    complain(error);
  }
}

function vote() {
  const chosen = Object.fromEntries(new FormData(at("vote")));
  const { all, ...rest } = chosen;
  return decide("vote", { ...rest, choice: all, with_text: at("with-text").checked });
}

function grow() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function offer() {
  showModel();
  const arms = at("model")?.selectedOptions[0]?.dataset.arms.split(" ") ?? [];
  for (const way of document.getElementsByName("way")) {
    way.disabled = !(way.value === "beside" || way.value === "blind" ? arms.length === 2 : arms.includes(way.value));
  }
  const chosen = [...document.getElementsByName("way")];
  if (chosen.some((way) => way.checked && way.disabled)) chosen.find((way) => !way.disabled).checked = true;
}

function turnLight() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
}

// ---- wiring

at("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("setup").addEventListener("submit", (event) => event.preventDefault());
at("model")?.addEventListener("change", offer);
at("stop").addEventListener("click", stop);
at("cancel").addEventListener("click", () => { endEditing(); write(""); field.focus(); });
at("new").addEventListener("click", () => (talk.rounds.length ? at("end").showModal() : begin()));
at("end").addEventListener("close", () => { if (at("end").returnValue === "end") begin(); at("end").returnValue = ""; });
at("kept-cancel").addEventListener("click", () => { write([kept, field.value].filter(Boolean).join("\n")); kept = null; showKept(); field.focus(); });
at("latest").addEventListener("click", toEnd);
at("print").addEventListener("click", () => window.print());
at("vote").addEventListener("submit", (event) => { event.preventDefault(); vote(); });
at("undo-vote").addEventListener("click", () => decide("vote", undefined, "DELETE"));
at("reveal").addEventListener("click", () => decide("reveal", {}));
for (const starter of document.querySelectorAll("[data-say]")) starter.addEventListener("click", () => { write(starter.dataset.say); field.focus(); });
at("theme").addEventListener("click", turnLight);
at("open-help").addEventListener("click", () => at("help").showModal());
at("open-about").addEventListener("click", () => at("about").showModal());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
field.addEventListener("input", heed);
at("setup").addEventListener("change", ({ target }) => {
  showStarters();
  target.closest(".choice")?.scrollIntoView({ block: "nearest", inline: "nearest" }); // above the sentences that came up
});
addEventListener("scroll", showLatest, { passive: true });
setInterval(showWaiting, 250);
field.addEventListener("keydown", (event) => {
  if (composing(event)) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !field.value && talk?.rounds.length) {
    event.preventDefault();
    edit(talk.rounds.length - 1);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || composing(event) || document.querySelector("dialog[open], :popover-open")) return;
  if (busy) stop();
  else if (editing !== null) at("cancel").click();
});

// An empty field of a talk that has none yet shows the sentences of the client whose card is chosen.
showStarters();

offer();
await reload();
if (!talk) field.focus({ preventScroll: true });
