// Keys: a letter does what the element with that data-key does, unless somebody is typing.
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  if (event.target.matches("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const element = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!element || element.disabled) return;
  event.preventDefault();
  if (element.matches("input")) element.select(); else element.click();
});
const who = document.querySelector("input[name=who]");
if (!who.value) who.focus();
