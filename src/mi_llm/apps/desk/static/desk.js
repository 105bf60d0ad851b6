// The coding page. What holds is a map of items (volley-3, global-EMP, note, done, shown-3) to a value and the change that made it
// so; every act of the rater is a change of one item, shown at once and handed to the queue.
import { composing } from "/static/composing.js";
import { Queue, show } from "/static/queue.js";

const data = JSON.parse(document.getElementById("data").textContent);
const { words, names, keys, covers, path } = data;
const codes = Object.keys(keys);
const training = document.querySelector("main").dataset.part === "training";
const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const volleys = all(".counselor");
const radios = all("[data-global] input");
const behaviors = all(".behavior[data-code]");
const guesses = all(".guess input");
const note = byId("note");
const scales = all("[data-global]");

const items = new Map(Object.entries(data.items));
let history = data.history;
let current = null; // the marked volley
let scale = null; // the marked global
let hintTimer = 0;
let noteTimer = 0;

const value = (item) => items.get(item)?.value ?? null;
const item = (volley) => `volley-${volley.dataset.volley}`;
const shown = (volley) => value(`shown-${volley.dataset.volley}`) === true;
const open = (volley) => value(item(volley)) === null || (training && !shown(volley));
const done = () => value("done") === true;
const volleyOf = (name) => byId(name.replace(/^shown-/, "volley-"));

// What a volley counts for: the codebook's rule, as the server derived it from the codebook.
function counted(list) {
  const covered = new Set((list ?? []).flatMap((code) => covers[code] ?? []));
  return (list ?? []).filter((code) => !covered.has(code));
}

function label(name) {
  const [kind, place] = name.split("-");
  if (kind === "global") return names[place];
  return kind === "note" ? words.note : kind === "guess" ? words.guess : kind === "done" ? words.this_transcript : words.volley.replace("{n}", place);
}

function spoken(name, given) {
  if (given === null) return words.uncoded;
  if (!Array.isArray(given)) return String(given);
  return given.length ? given.map((code) => names[code]).join(words.comma) : words.nothing_here;
}

function announce(text) { byId("say").textContent = text; }

// What a key did not do, for those who see the page too.
function hint(text) {
  announce(text);
  byId("hint").textContent = text;
  byId("hint").hidden = false;
  clearTimeout(hintTimer);
  hintTimer = setTimeout(() => { byId("hint").hidden = true; }, 5000);
}

// ---- changes ----

function identity() {
  // randomUUID exists on secure pages only; a desk inside a hospital's network may not be one
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function apply(change) {
  const before = value(change.item);
  items.set(change.item, { value: change.value, version: change.id });
  history = change.undoes
    ? history.filter((entry) => entry.id !== change.undoes)
    : [...history, { id: change.id, item: change.item, before }];
  render(change.item);
}

function make(name, given, undoes = null) {
  const change = { id: identity(), item: name, value: given, base: items.get(name)?.version ?? "", undoes };
  apply(change);
  queue.add(path, change);
}

function settled(name) { return !queue.waiting(path).some((change) => change.item === name); }

function adopt(name, held) {
  if (items.get(name)?.version === held.version) return;
  items.set(name, { value: held.value, version: held.version });
  render(name);
}

const queue = new Queue(data.rater, {
  status: show(words),
  arrived: (where, change) => { if (where === path) apply(change); }, // made in another tab of this browser
  left: (where, id) => { if (where === path) { removeNotice(id); refresh(); } },
  outcome: (where, result, change) => {
    if (where !== path) return;
    if (result.gold) { data.gold[result.item.replace("shown-", "")] = result.gold; render(result.item); }
    if (result.status === "unreadable") unreadable(change);
    else if (result.status === "conflict") conflict(result, change);
    else if (settled(result.item)) {
      adopt(result.item, result);
      if (result.status === "refused") refused(result);
      else if (result.item === "done" && training) showResult();
    }
  },
});

// The server adds the agreement to a finished exercise; the browser must not scroll back to where the rater was.
function showResult() {
  location.hash = "result";
  window.history.scrollRestoration = "manual";
  location.reload();
}

// What other windows and devices made of it meanwhile.
async function refresh() {
  const written = queue.written;
  let state;
  try {
    const response = await fetch(`${path}/state`, { signal: AbortSignal.timeout(15_000) });
    if (!response.ok) return;
    state = await response.json();
  } catch { return; }
  if (queue.written !== written) return; // older than what was saved since
  Object.assign(data.gold, state.gold);
  for (const [name, held] of Object.entries(state.items)) {
    if (settled(name) && !(name === "note" && noteTimer)) adopt(name, held);
  }
  if (!queue.waiting(path).length) history = state.history;
}

// ---- two windows changed the same thing ----

const notices = new Map(); // by item: the element and the ids it is about

function notice(name, ids, text, buttons) {
  notices.get(name)?.element.remove();
  const element = document.createElement("section");
  element.className = "notice";
  element.append(Object.assign(document.createElement("p"), { textContent: text }));
  for (const [title, act] of buttons) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: title });
    button.addEventListener("click", act);
    element.append(button);
  }
  notices.set(name, { element, ids });
  byId("notices").append(element);
}

function removeNotice(id) {
  for (const [name, { element, ids }] of notices) {
    if (ids.includes(id)) { element.remove(); notices.delete(name); }
  }
}

function conflict(result, change) {
  const name = result.item;
  const ids = [...(notices.get(name)?.ids ?? []), change.id];
  const end = () => {
    ids.forEach((id) => queue.drop(path, id));
    notices.get(name).element.remove();
    notices.delete(name);
    items.set(name, { value: result.value, version: result.version });
  };
  const text = `${label(name)} ${words.conflict}. ${words.here}: ${spoken(name, value(name))}. ${words.there}: ${spoken(name, result.value)}.`;
  notice(name, ids, text, [
    [words.keep_here, () => { const here = value(name); end(); make(name, here); }],
    [words.take_there, () => { end(); render(name); queue.tell(); }],
  ]);
}

function refused(result) {
  const text = `${label(result.item)} ${words.refused}: ${words[`reason_${result.reason}`]}.`;
  notice(result.item, [], text.trim(), [[words.dismiss, () => {
    notices.get(result.item).element.remove();
    notices.delete(result.item);
  }]]);
}

function unreadable(change) {
  const text = `${label(change.item)} ${words.refused}: ${words.unreadable}.`;
  notice(change.item, [...(notices.get(change.item)?.ids ?? []), change.id], text.trim(), [[words.dismiss, () => {
    notices.get(change.item).ids.forEach((id) => queue.drop(path, id));
    notices.get(change.item).element.remove();
    notices.delete(change.item);
    items.delete(change.item);
    render(change.item);
    refresh(); // to what the server has
  }]]);
}

// ---- what the rater does ----

const above = (volley) => volley.getBoundingClientRect().bottom <= document.querySelector(".bar").offsetHeight;

// Whether the rater is at the globals, where a letter would change a volley that is out of sight.
function rating() {
  const past = byId("after").getBoundingClientRect().top < innerHeight / 2;
  return scale !== null || byId("after").contains(document.activeElement) || (past && above(current));
}

// At the globals, transcript and counts stand where the letters stood.
function showMode() { document.body.classList.toggle("rating", rating()); }

function mark(fieldset, focus = true) {
  unmark();
  scale = fieldset;
  scale.setAttribute("aria-current", "true");
  if (focus) {
    scale.focus({ preventScroll: true });
    scale.scrollIntoView({ block: "nearest" }); // not when a pointer gave the focus: it would lift from another place
  }
  showMode();
}

function unmark() {
  scale?.removeAttribute("aria-current");
  scale = null;
}

const unrated = () => scales.find((fieldset) => value(`global-${fieldset.dataset.global}`) === null);

function toGlobals() {
  byId("after").scrollIntoView({ block: "start" });
  mark(unrated() ?? scales[0]);
}

function rate(digit) {
  const fieldset = scale ?? unrated();
  if (!rating() || !fieldset) return;
  if (done()) { hint(words.reason_done); return; }
  fieldset.querySelector(`input[value="${digit}"]`).click();
  announce(`${names[fieldset.dataset.global]}: ${digit}`);
  mark(unrated() ?? fieldset);
}

function select(volley, focus = true) {
  unmark();
  current?.removeAttribute("aria-current");
  current = volley;
  volley.setAttribute("aria-current", "true");
  if (focus) volley.focus({ preventScroll: true });
  volley.scrollIntoView({ block: "nearest" });
  renderPalette();
  showMode();
}

function move(step) {
  if (rating()) {
    const place = scales.indexOf(scale) + step;
    if (scale && place < 0) select(volleys.at(-1));
    else if (place < scales.length) mark(scales[Math.max(place, 0)]);
    return;
  }
  const place = volleys.indexOf(current) + step;
  if (place >= volleys.length) toGlobals();
  else if (place >= 0) select(volleys[place]);
}

function next() {
  const place = volleys.indexOf(current);
  const ahead = [...volleys.slice(place + 1), ...volleys.slice(0, place + 1)].find(open);
  if (ahead) select(ahead);
  else toGlobals();
}

function code(volley, given) {
  if (done()) { announce(words.reason_done); return; }
  if (shown(volley)) { announce(words.reason_shown); return; }
  make(item(volley), given);
  announce(`${label(item(volley))}: ${spoken(item(volley), given)}`);
  volley.scrollIntoView({ block: "nearest" });
}

// A letter codes only a volley that is seen.
function byLetter(act) {
  if (rating()) { hint(words.letters_rest); return; }
  if (above(current) || current.getBoundingClientRect().top >= innerHeight) { current.scrollIntoView({ block: "nearest" }); hint(words.out_of_sight.replace("{n}", current.dataset.volley)); return; }
  act();
}

function toggle(behavior) {
  const held = value(item(current)) ?? [];
  const given = codes.filter((one) => (one === behavior) !== held.includes(one));
  code(current, given.length ? given : null);
  showRule(behavior);
}

function nothing() {
  const held = value(item(current));
  code(current, held !== null && !held.length ? null : []);
}

function undoable() {
  return history.findLast(({ item: name }) => /^(volley|global)-/.test(name) && !(name.startsWith("volley-") && shown(byId(name))));
}

function undo() {
  const entry = undoable();
  if (!entry || done()) return;
  make(entry.item, entry.before, entry.id);
  if (entry.item.startsWith("volley-")) select(byId(entry.item));
  else mark(scales.find((fieldset) => entry.item === `global-${fieldset.dataset.global}`));
  announce(`${words.undone}: ${label(entry.item)}: ${spoken(entry.item, entry.before)}`);
}

function compare() {
  if (value(item(current)) === null || shown(current) || done()) return;
  make(`shown-${current.dataset.volley}`, true);
}

// From the globals on: to what is still open, and to the end.
function onward() {
  const left = unrated();
  if (left) { mark(left); return; }
  if (volleys.some(open)) { next(); return; }
  unmark();
  const target = done() ? document.querySelector("#onward a") : guesses.length && value("guess") === null ? guesses[0] : byId("finish");
  target?.focus();
}

function enter() {
  if (rating()) onward();
  else if (training && value(item(current)) !== null && !shown(current)) compare();
  else next();
}

function keepNote() {
  clearTimeout(noteTimer);
  noteTimer = 0;
  const text = note.value.replace(/\p{Cs}/gu, "\ufffd"); // half a character, which no server can read
  if (text !== (value("note") ?? "")) make("note", text);
}

const acts = {
  arrowdown: () => move(1), j: () => move(1), arrowup: () => move(-1), k: () => move(-1), enter, u: undo, n: () => byLetter(nothing),
  "?": () => byId("codebook").showModal(),
};
for (const [behavior, key] of Object.entries(keys)) acts[key] = () => byLetter(() => toggle(behavior));
for (const digit of ["1", "2", "3", "4", "5"]) acts[digit] = () => rate(digit);

document.addEventListener("keydown", (event) => {
  if (event.altKey || composing(event) || byId("codebook").open) return;
  if (event.ctrlKey || event.metaKey) {
    if (event.key.toLowerCase() !== "z" || event.shiftKey || event.target.matches("textarea")) return;
    event.preventDefault();
    undo();
    return;
  }
  // with a Chinese input method on, some browsers give the letter only as the key's place
  const key = event.key === "Process" ? event.code.replace(/^Key/, "").toLowerCase() : event.key.toLowerCase();
  const { target } = event;
  if (target.matches("textarea")) return;
  if (target.matches("input[type=radio]") && /^(arrow.*| )$/.test(key)) return; // a radio's own keys
  if (key === "enter" && target.matches("button, a, summary")) return;
  if (!Object.hasOwn(acts, key)) return;
  event.preventDefault();
  if (event.repeat && !["arrowdown", "arrowup", "j", "k"].includes(key)) return;
  acts[key]();
});

for (const fieldset of scales) fieldset.addEventListener("focusin", () => { if (fieldset !== scale) mark(fieldset, false); });
byId("after").addEventListener("focusin", (event) => { if (!event.target.closest("[data-global]")) unmark(); showMode(); });
addEventListener("scroll", showMode, { passive: true });
for (const volley of volleys) volley.addEventListener("focus", () => { if (volley !== current) select(volley, false); });
for (const button of behaviors) {
  button.addEventListener("click", () => toggle(button.dataset.code));
  for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => showRule(button.dataset.code));
}
byId("nothing").addEventListener("click", nothing);
byId("undo").addEventListener("click", undo);
byId("next").addEventListener("click", next);
byId("compare")?.addEventListener("click", compare);
byId("rules").addEventListener("click", () => byId("codebook").showModal());
byId("close").addEventListener("click", () => byId("codebook").close());
for (const radio of radios) radio.addEventListener("change", () => make(`global-${radio.name}`, Number(radio.value)));
for (const radio of guesses) radio.addEventListener("change", () => make("guess", radio.value));
addEventListener("focus", () => { refresh(); queue.flush(); });
note.addEventListener("input", () => { clearTimeout(noteTimer); noteTimer = setTimeout(keepNote, 700); });
note.addEventListener("blur", keepNote);
addEventListener("pagehide", keepNote);
document.addEventListener("visibilitychange", () => { if (document.hidden) keepNote(); else refresh(); });
byId("finish").addEventListener("click", () => { keepNote(); make("done", true); });
byId("reopen")?.addEventListener("click", () => make("done", null));

// ---- what the rater sees ----

function chip(text, kind = "") { return Object.assign(document.createElement("span"), { className: `chip ${kind}`, textContent: text }); }

function renderVolley(volley) {
  const held = value(item(volley));
  const place = byId(`codes-${volley.dataset.volley}`);
  volley.classList.toggle("coded", held !== null);
  const counts = counted(held);
  const coded = (behavior) => (counts.includes(behavior) ? chip(names[behavior]) : chip(`${names[behavior]} (${words.not_counted})`, "covered"));
  const chips = held?.length ? held.map(coded) : [chip(held ? words.nothing_here : words.uncoded, "open")];
  document.querySelector(`[data-codes="${volley.dataset.volley}"]`).replaceChildren(...chips.map((one) => one.cloneNode(true)));
  place.replaceChildren(...chips);
  if (training) renderGold(volley, held);
}

function renderGold(volley, held) {
  const place = byId(`gold-${volley.dataset.volley}`);
  const gold = data.gold[volley.dataset.volley];
  place.hidden = !shown(volley) || !gold;
  if (place.hidden) return;
  const [mine, theirs] = [counted(held), counted(gold)];
  const rows = [
    [words.agree, "agree", mine.filter((one) => theirs.includes(one))],
    [words.missed, "missed", theirs.filter((one) => !mine.includes(one))],
    [words.extra, "extra", mine.filter((one) => !theirs.includes(one))],
  ];
  const told = rows.filter(([, , list]) => list.length).map(([title, kind, list]) => `${title}: ${list.map((one) => names[one]).join(words.comma)}`);
  if (!told.length) told.push(`${words.agree}: ${words.nothing_here}`);
  if (place.textContent !== told.join("")) {
    place.replaceChildren(...told.map((text, at) => chip(text, rows.filter(([, , list]) => list.length)[at]?.[1] ?? "agree")));
    announce(`${words.gold}: ${told.join(". ")}`);
  }
}

function renderPalette() {
  const held = value(item(current));
  byId("now").textContent = done() ? "" : `${label(item(current))} · ${spoken(item(current), held)}`;
  const fixed = done() || shown(current);
  for (const button of behaviors) {
    button.setAttribute("aria-pressed", String((held ?? []).includes(button.dataset.code)));
    button.setAttribute("aria-disabled", String(fixed));
  }
  byId("nothing").setAttribute("aria-pressed", String(held !== null && !held.length));
  byId("nothing").setAttribute("aria-disabled", String(fixed));
  byId("undo").setAttribute("aria-disabled", String(done() || !undoable()));
  byId("compare")?.setAttribute("aria-disabled", String(held === null || fixed));
}

function renderCounts() {
  const seen = volleys.flatMap((volley) => counted(value(item(volley))));
  for (const behavior of codes) {
    const count = seen.filter((one) => one === behavior).length;
    for (const place of all(`[data-count="${behavior}"]`)) {
      place.textContent = count;
      place.classList.toggle("zero", !count);
    }
  }
}

function renderProgress() {
  const coded = volleys.filter((volley) => !open(volley)).length;
  const globals = new Set(radios.map((radio) => radio.name));
  const rated = [...globals].filter((name) => value(`global-${name}`) !== null).length;
  const fill = (text, a, b) => text.replace("{a}", a).replace("{b}", b);
  byId("progress").textContent = `${fill(words.volleys, coded, volleys.length)} · ${fill(words.globals, rated, globals.size)}`;
  document.body.classList.toggle("done", done());
  byId("finished").hidden = byId("onward").hidden = byId("beside-done").hidden = !done();
  byId("next").hidden = done();
  byId("finish").hidden = done();
  byId("finish-more").hidden = done();
  const complete = coded === volleys.length && rated === globals.size;
  byId("finish").disabled = !complete || (guesses.length > 0 && value("guess") === null);
  for (const radio of guesses) radio.disabled = !complete || done(); // a guess made first could color the codes
  if (byId("reopen")) byId("reopen").hidden = !done();
  for (const radio of radios) radio.disabled = done();
}

function render(name) {
  const [kind, place] = name.split("-");
  if (kind === "volley" || kind === "shown") renderVolley(volleyOf(name));
  if (kind === "global") for (const radio of radios) if (radio.name === place) radio.checked = Number(radio.value) === value(name);
  if (kind === "guess") for (const radio of guesses) radio.checked = radio.value === value(name);
  if (kind === "note" && !noteTimer) note.value = value("note") ?? "";
  if (kind === "volley") renderCounts();
  renderPalette();
  renderProgress();
}

function showRule(behavior) {
  for (const rule of all("#rule [data-rule]")) rule.hidden = rule.dataset.rule !== behavior;
}

// ---- begin ----

[current] = volleys;
const waiting = queue.waiting(path);
for (const change of waiting) if (!history.some(({ id }) => id === change.id) && items.get(change.item)?.version !== change.id) apply(change);
volleys.forEach(renderVolley);
for (const name of [...new Set(radios.map((radio) => `global-${radio.name}`)), "note", "guess"]) render(name);
renderCounts();
if (byId("result")) current.setAttribute("aria-current", "true"); // the result stays in view
else select(volleys.find(open) ?? volleys[0], false);
renderPalette();
queue.tell();
queue.flush();
document.body.dataset.ready = "true";
