// The table of claims: filter, sort, copy a claim's address. The view is the address's fragment, "#table=T6&verdict=differs", so that
// every view is a link; a fragment without "=" is a claim. Without this script all claims are shown, in the paper's order.
const body = document.querySelector("#claims tbody");
const rows = [...body.rows];
const form = document.querySelector("#filter");
const count = document.querySelector("#count");
const heads = [...document.querySelectorAll("#claims th[data-sort]")];
const views = [...document.querySelectorAll("a[data-view]")];
const place = new Map(rows.map((row, at) => [row, at]));

const isView = () => location.hash.includes("=") || location.hash === "#all";
const wanted = () => new URLSearchParams(isView() ? location.hash.slice(1) : "");

function value(row, key) {
  if (key === "verdict") return Number(row.dataset.rank);
  return row.dataset[key] === "" ? NaN : Number(row.dataset[key]);
}

function show() {
  const view = wanted();
  const verdicts = (view.get("verdict") || "").split(",").filter(Boolean);
  const words = (view.get("words") || "").trim().toLowerCase();
  const key = (view.get("sort") || "").replace("-", "");
  const turn = (view.get("sort") || "").startsWith("-") ? -1 : 1;
  let shown = 0;
  for (const row of rows) {
    row.hidden = !((!verdicts.length || verdicts.includes(row.dataset.verdict)) && (!view.get("table") || row.dataset.table === view.get("table"))
      && row.textContent.toLowerCase().includes(words));
    shown += !row.hidden;
  }
  const order = (one, other) => {
    const [a, b] = [value(one, key), value(other, key)];
    if (key && (a !== b) && !(isNaN(a) && isNaN(b))) return isNaN(a) ? 1 : isNaN(b) ? -1 : turn * (a - b);
    return place.get(one) - place.get(other);
  };
  const sorted = [...rows].sort(order);
  if (sorted.some((row, at) => body.rows[at] !== row)) body.append(...sorted);
  for (const head of heads) {
    head.setAttribute("aria-sort", head.dataset.sort === key ? (turn > 0 ? "ascending" : "descending") : "none");
  }
  for (const link of views) {
    const its = new URLSearchParams(link.hash.slice(1));
    const same = ["verdict", "table"].every((name) => (its.get(name) || "") === (view.get(name) || ""));
    if (same && isView()) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  }
  for (const field of form.elements) if (field.name) field.value = view.get(field.name) || "";
  count.textContent = count.dataset.words.replace("#", shown).replace("#", rows.length);
}

function go(view) {
  for (const [name, given] of [...view]) if (!given) view.delete(name);
  history.replaceState(null, "", `#${view.toString() || "all"}`);
  show();
}

function arrive() {
  if (isView()) {
    show();
    if (location.hash !== "#all") form.scrollIntoView();
    return;
  }
  const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  show();  // a link to a claim shows it, whatever was filtered out before
  if (row && body.contains(row)) row.scrollIntoView({ block: "center" });
}

form.hidden = false;
form.addEventListener("input", () => {
  const view = new URLSearchParams(new FormData(form));
  go(view);
});
form.addEventListener("submit", (event) => event.preventDefault());
for (const head of heads) {
  head.querySelector("button").addEventListener("click", () => {
    const view = wanted();
    const up = head.getAttribute("aria-sort") === "ascending";
    view.set("sort", up ? `-${head.dataset.sort}` : head.dataset.sort);
    go(view);
  });
}
body.addEventListener("click", (event) => {
  const link = event.target.closest("a.copy");
  if (!link || !navigator.clipboard || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();  // to go there would show all rows again
  navigator.clipboard.writeText(link.href).then(() => {
    count.textContent = link.dataset.copied;
    link.classList.add("copied");
    setTimeout(() => link.classList.remove("copied"), 2000);
  }, () => { location.hash = link.hash; });
});
addEventListener("hashchange", arrive);
arrive();
