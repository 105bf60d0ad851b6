// Shows the dialogs in portions, filtered; the view is the address's fragment, "#show=drop&from=51". A fragment without "=" is a
// dialog. Without this script all dialogs are shown, folded.
const PORTION = 50;
const articles = [...document.querySelectorAll("#dialogs article")];
const form = document.querySelector("#filter");
const count = document.querySelector("#count");
const [before, after] = ["#before", "#after"].map((name) => document.querySelector(name));

const view = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

function show(target, whole) {
  const wanted = view();
  const words = (wanted.get("words") || "").trim().toLowerCase();
  const kind = wanted.get("show") || "";
  const fitting = articles.filter((article) => (!kind || article.dataset.show.split(" ").includes(kind))
    && (!words || article.textContent.toLowerCase().includes(words)));
  let from = Number(wanted.get("from") || 1);
  if (target) from = fitting.indexOf(target) - (fitting.indexOf(target) % PORTION) + 1;
  const shown = new Set(whole ? fitting : fitting.slice(from - 1, from - 1 + PORTION));
  for (const article of articles) article.hidden = !shown.has(article);
  for (const name of ["show", "words"]) form.elements[name].value = wanted.get(name) || "";
  before.disabled = from <= 1;
  after.disabled = from - 1 + PORTION >= fitting.length;
  before.onclick = () => go({ from: Math.max(1, from - PORTION) });
  after.onclick = () => go({ from: from + PORTION });
  count.textContent = [shown.size && from, from - 1 + shown.size, fitting.length].reduce((text, number) => text.replace("#", number), count.dataset.words);
}

function go(change) {
  const wanted = view();
  for (const [name, value] of Object.entries(change)) {
    if (value && value !== 1) wanted.set(name, value); else wanted.delete(name);
  }
  history.replaceState(null, "", `#${wanted.toString() || "show="}`);
  show();
}

function arrive() {
  const target = location.hash.includes("=") ? null : document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const article = articles.includes(target) ? target : null;
  show(article);
  if (article) {
    article.querySelector("details").open = true;
    article.scrollIntoView();
  }
}

form.hidden = false;
form.addEventListener("input", () => go({ show: form.elements.show.value, words: form.elements.words.value, from: 1 }));
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", arrive);
addEventListener("beforeprint", () => show(null, true)); // paper has no next portion
addEventListener("afterprint", () => show());
arrive();
