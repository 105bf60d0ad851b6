// Sorts and hides the rounds of report/rounds.html; everything it needs stands in the articles' data attributes.
(() => {
  const list = document.getElementById("rounds");
  const rounds = [...list.children].map((article) => ({ article, gains: article.dataset.gains.split(" ").map(Number) }));
  const value = (name) => document.getElementById(name)?.value ?? "";
  const metrics = document.getElementById("metric").options.length;

  // A round's gain in the chosen metric: of the chosen model, or the mean of all.
  const gain = ({ gains }, metric, model) => {
    if (model !== "") return gains[Number(model) * metrics + metric];
    const chosen = gains.filter((_, place) => place % metrics === metric);
    return chosen.reduce((sum, one) => sum + one, 0) / chosen.length;
  };

  const show = () => {
    const [order, model, dialog, set] = ["order", "model", "dialog", "set"].map(value);
    const metric = Number(value("metric"));
    const sign = { gain: -1, loss: 1 }[order] ?? 0;
    const keyed = rounds.map((round) => [sign * gain(round, metric, model), round]);
    keyed.sort(([one], [other]) => one - other); // stable: equal rounds stay in the dialogs' order
    list.append(...keyed.map(([, { article }]) => article));
    let count = 0;
    for (const { article } of rounds) {
      article.hidden = (dialog !== "" && article.dataset.dialog !== dialog) || (set !== "" && article.dataset.set !== set);
      count += !article.hidden;
    }
    for (const section of list.querySelectorAll("section")) section.hidden = model !== "" && section.dataset.model !== model;
    const shown = document.getElementById("count");
    shown.value = shown.dataset.words.replace("#", count).replace("#", rounds.length);
  };

  // A link to one round shows it, whatever was filtered.
  const reveal = () => {
    const article = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (article?.hidden) {
      for (const name of ["dialog", "set"]) if (document.getElementById(name)) document.getElementById(name).value = "";
      show();
    }
    article?.scrollIntoView();
  };

  const controls = document.getElementById("controls");
  controls.hidden = false;
  controls.addEventListener("change", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", reveal);
  show();
  if (location.hash) reveal();
})();
