// Whether a key belongs to an input method: Enter that takes a candidate, Escape that closes them. Safari ends the composition before
// such a key and marks it by 229 alone. A letter with 229, or "Process" in its place, is one that no field takes: the desk's keys.
export const composing = ({ isComposing, key, keyCode }) => isComposing || (keyCode === 229 && key.length > 1 && key !== "Process");
