// Show the claims that match the chosen verdicts and the words typed; without this script all are shown.
const rows = [...document.querySelectorAll("#claims tbody tr")];
const boxes = [...document.querySelectorAll("#filter input[type=checkbox]")];
const words = document.querySelector("#words");
const count = document.querySelector("#count");
function show() {
  const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const text = words.value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden = !(wanted.has(row.dataset.verdict) && row.textContent.toLowerCase().includes(text));
    shown += !row.hidden;
  }
  count.textContent = count.dataset.words.replace("#", shown).replace("#", rows.length);
}
for (const box of boxes) box.addEventListener("change", show);
words.addEventListener("input", show);
// a link to a claim shows it whatever is filtered out
addEventListener("hashchange", () => {
  const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (row && row.hidden) { boxes.forEach((box) => { box.checked = true; }); words.value = ""; show(); row.scrollIntoView(); }
});
document.querySelector("#filter").hidden = false;
show();
