// The page of a talk: what is said comes from the server and is put into the page as text, never as HTML.
import { composing } from "/static/composing.js";
import { events } from "/static/stream.js";

const words = JSON.parse(document.getElementById("main").dataset.words);
const at = (id) => document.getElementById(id);
const field = at("say");
let talk = null; // as the server shows it
let busy = false; // a message is on its way or replies are coming
let editing = null; // the round that is being edited

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
  at("which").textContent = talk === null ? words.none_yet : `${talk.model}, ${two() ? words[`way_${talk.way}`] : words[talk.sides[0]]}`;
  for (const card of document.querySelectorAll(".card")) card.hidden = talk === null || card.dataset.profile !== talk.profile;
  at("rounds").replaceChildren(...(talk?.rounds ?? []).map(showRound));
  showEnd();
}

function showRound(round, place) {
  const item = make("li", "round");
  const client = make("div", "client");
  const who = make("div", "who");
  who.append(make("span", "", words.you), act(words.edit, () => edit(place)));
  client.append(who, make("div", "words", round.client));
  item.append(client);
  if (round.found.length) {
    item.classList.add("unsent");
    for (const danger of round.found) item.append(at(`found-${danger}`).content.cloneNode(true));
  } else {
    const replies = make("div", "replies");
    talk.sides.forEach((arm, side) => replies.append(showReply(side, round.replies[side] ?? { text: "", finish: "", why: "" })));
    item.append(replies);
    for (const danger of round.help ?? []) item.append(at(`near-${danger}`).content.cloneNode(true));
  }
  return item;
}

function showReply(side, reply) {
  const box = make("div", "reply");
  if (talk.sides[side]) box.dataset.arm = talk.sides[side];
  box.append(make("div", "who", two() ? nameOf(side) : words.counselor));
  const said = make("div", "words");
  said.append(document.createTextNode(reply.text));
  box.append(said);
  finishReply(box, reply);
  return box;
}

function finishReply(box, reply) {
  box.classList.toggle("coming", reply.finish === "");
  box.querySelector(".note")?.remove();
  box.querySelector(".acts")?.remove();
  box.querySelector(".words").hidden = reply.finish !== "" && !reply.text;
  const note = { withheld: words[`withheld_${reply.why}`], failed: words[`failed_${reply.why}`], stopped: words.stopped, length: words.length }[reply.finish];
  if (note) box.append(make("p", "note", note));
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

function showEnd() {
  const last = talk?.rounds.at(-1);
  const complete = talk !== null && !busy && talk.sides.every((_, side) => talk.rounds.some((round) => round.replies[side]?.text));
  at("vote").hidden = !(complete && talk.way === "blind" && talk.vote === null);
  at("voted").hidden = !(talk?.vote);
  if (talk?.vote) at("voted").textContent = talk.sides.reduce((text, arm, side) => text.replace(`{${side}}`, words[arm]), words.voted);
  at("export").hidden = !(complete && (talk.way !== "blind" || talk.vote));
  if (!at("export").hidden) {
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
}

function nearEnd() {
  return document.documentElement.scrollHeight - window.scrollY - window.innerHeight < 160;
}

function toEnd() {
  window.scrollTo({ top: document.documentElement.scrollHeight });
}

function announce(text) {
  at("live").textContent = text;
}

// ---- what one does

async function send() {
  const text = field.value.trim();
  if (!text || busy) return;
  busy = true;
  complain(null);
  try {
    if (talk === null) {
      const chosen = new FormData(at("setup"));
      const begun = await ask("/talks", { model: chosen.get("model"), way: chosen.get("way"), profile: chosen.get("profile") || null });
      talk = await begun.json();
      remembered.set(talk.id);
      for (const card of document.querySelectorAll(".card")) card.open = window.innerWidth > 700;
      showTalk();
    }
  } catch (error) {
    busy = false;
    complain(error);
    return;
  }
  const from = editing;
  if (from !== null) talk.rounds.length = from;
  talk.rounds.push({ client: text, found: [], replies: [] });
  field.value = "";
  grow();
  endEditing();
  const sent = await speak(`/talks/${talk.id}/messages`, from === null ? { text } : { text, instead_of: from }, true);
  if (!sent && !field.value) {
    field.value = text;
    grow();
  }
  field.focus({ preventScroll: true });
}

// Ask for replies to the last round, and show them as they come; false if the server took no message.
async function speak(path, body, fresh = false) {
  busy = true;
  complain(null);
  const mine = talk;
  const round = talk.rounds.at(-1);
  const before = round.replies;
  round.replies = talk.sides.map(() => ({ text: "", finish: "", why: "" }));
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
      card.scrollIntoView({ block: "start" });
      window.scrollBy(0, -document.querySelector(".top").offsetHeight - 16);
      announce(card.textContent.replace(/\s+/g, " "));
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
        Object.assign(reply, { text: event.text, finish: event.finish, why: event.why });
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
    showTalk();
    if (follow) toEnd();
    if (busy) await new Promise((resolve) => setTimeout(resolve, 1000));
  } while (busy && talk === mine);
}

async function stop() {
  if (busy && talk) await ask(`/talks/${talk.id}/stop`, {}).catch(() => {});
}

function edit(place) {
  if (busy) return;
  editing = place;
  field.value = talk.rounds[place].client;
  at("editing").hidden = false;
  grow();
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
  busy = false;
  remembered.set(null);
  endEditing();
  complain(null);
  showTalk();
  window.scrollTo({ top: 0 });
  field.focus({ preventScroll: true });
  if (old) await ask(`/talks/${old}`, undefined, "DELETE").catch(() => {});
}

async function vote(choice) {
  try {
    const answer = await ask(`/talks/${talk.id}/vote`, { choice, with_text: at("with-text").checked });
    Object.assign(talk, await answer.json());
    showTalk();
    announce(at("voted").textContent);
    at("voted").scrollIntoView({ block: "nearest" });
  } catch (error) {
    complain(error);
  }
}

function grow() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function offer() {
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
at("cancel").addEventListener("click", () => { endEditing(); field.value = ""; grow(); field.focus(); });
at("new").addEventListener("click", begin);
at("theme").addEventListener("click", turnLight);
at("open-help").addEventListener("click", () => at("help").showModal());
at("open-about").addEventListener("click", () => at("about").showModal());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => vote(button.dataset.choice));
field.addEventListener("input", grow);
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
  if (event.key !== "Escape" || composing(event) || document.querySelector("dialog[open]")) return;
  if (busy) stop();
  else if (editing !== null) at("cancel").click();
});

offer();
await reload();
if (!talk) field.focus({ preventScroll: true });
