// The coordinator's forms: each sends what it holds, and the page is loaded again with what was written.
const { words } = JSON.parse(document.getElementById("data").textContent);

function content(form) {
  const fields = new FormData(form);
  const reason = String(fields.get("reason")).trim();
  if (!form.dataset.item) return { rater: fields.get("rater"), reason };
  const { item } = form.dataset;
  const values = fields.getAll("value");
  return { item, value: item.startsWith("global-") ? Number(values[0]) : values, reason };
}

for (const form of document.querySelectorAll("form[data-post]")) {
  form.addEventListener("change", ({ target }) => { // a volley has codes, or nothing to code
    if (!target.checked || target.type !== "checkbox") return;
    for (const box of form.querySelectorAll("[type=checkbox]")) if ((box.name === "nothing") !== (target.name === "nothing")) box.checked = false;
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const status = form.querySelector("[role=status]");
    const body = content(form);
    const nothing = form.querySelector("[name=nothing]");
    if (nothing && !nothing.checked && !body.value.length) { status.textContent = words.needs_value; return; }
    if (!body.reason) { status.textContent = words.needs_reason; return; }
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(form.dataset.post, { method: "POST", headers, body: JSON.stringify(body) }).catch(() => null);
    if (!answer?.ok) { status.textContent = words.not_sent; return; }
    if (form.dataset.after) location.assign(form.dataset.after);
    else location.reload();
  });
}
