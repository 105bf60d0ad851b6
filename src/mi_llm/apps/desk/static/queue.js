// Changes on their way to the server. Each lies in localStorage under its own key from the moment it is made until the server
// has acknowledged it, so that a reload, a lost network or a closed tab loses none. Any tab sends whatever waits, oldest first;
// the server writes a change once, however often it is sent.
const BATCH = 40_000; // bytes a request at most; the server takes 65,536
const PATIENCE = 15_000; // milliseconds until a request counts as lost, and between two tries at most

export class Queue {
  // `outcome(path, result, change)` is told what became of a change, `status(name, count)` how saving stands
  constructor(rater, { outcome, status, arrived = () => {}, left = () => {} }) {
    Object.assign(this, { rater, outcome, status, prefix: `desk ${rater} `, held: new Set(), memory: new Map() });
    Object.assign(this, { busy: false, again: false, trouble: "", delay: 1000, timer: 0, written: 0, single: 0 });
    addEventListener("online", () => this.flush());
    addEventListener("storage", (event) => {
      if (event.storageArea !== localStorage || !event.key?.startsWith(this.prefix)) return;
      if (event.newValue) arrived(this.#path(event.key), JSON.parse(event.newValue));
      else left(this.#path(event.key), JSON.parse(event.oldValue).id);
      this.tell();
    });
  }

  // A key sorts by the time of the change; the name of its packet's address lies between.
  #key(path, number, id) { return `${this.prefix}${String(number).padStart(16, "0")} ${path} ${id}`; }
  #path(key) { return key.slice(this.prefix.length).split(" ")[1]; }

  keys() {
    const keys = [...this.memory.keys()];
    for (let place = 0; place < localStorage.length; place += 1) {
      const key = localStorage.key(place);
      if (key.startsWith(this.prefix)) keys.push(key);
    }
    return keys.sort();
  }

  read(key) { return JSON.parse(this.memory.get(key) ?? localStorage.getItem(key)); }

  // The changes that wait, oldest first, of one packet.
  waiting(path) {
    return this.keys().filter((key) => this.#path(key) === path).map((key) => this.read(key)).filter(Boolean);
  }

  add(path, change) {
    const last = this.keys().at(-1);
    const number = Math.max(Date.now(), last ? Number(last.slice(this.prefix.length).split(" ")[0]) + 1 : 0);
    const key = this.#key(path, number, change.id);
    try { localStorage.setItem(key, JSON.stringify(change)); } catch { this.memory.set(key, JSON.stringify(change)); }
    this.flush();
  }

  drop(path, id) {
    for (const key of this.keys()) {
      if (this.#path(key) === path && key.endsWith(` ${id}`)) { this.memory.delete(key); localStorage.removeItem(key); }
    }
    this.held.delete(id);
  }

  tell() {
    const count = this.keys().filter((key) => !this.held.has(key.split(" ").at(-1))).length;
    if (!count) this.status("saved", 0);
    else if (this.trouble === "signed_out" || this.trouble === "rejected") this.status(this.trouble, count);
    else if (this.memory.size) this.status("unkept", count);
    else if (this.trouble || !navigator.onLine) this.status("offline", count);
    else this.status("saving", count);
  }

  async flush() {
    if (this.busy) { this.again = true; return; }
    this.busy = true;
    clearTimeout(this.timer);
    try {
      do {
        this.again = false;
        for (const path of new Set(this.keys().map((key) => this.#path(key)))) {
          while (await this.#send(path)) { /* the next batch */ }
        }
      } while (this.again);
      this.delay = 1000;
    } catch {
      this.trouble = "offline";
      this.timer = setTimeout(() => this.flush(), this.delay);
      this.delay = Math.min(2 * this.delay, PATIENCE);
    } finally {
      this.busy = false;
      this.tell();
    }
  }

  // Send one batch; true where more may wait. Throws where the server cannot be reached, or cannot save now.
  async #send(path) {
    const batch = [];
    let size = 0;
    for (const change of this.waiting(path)) {
      size += new TextEncoder().encode(JSON.stringify(change)).length + 1;
      if (this.held.has(change.id)) continue;
      if (batch.length && (size > BATCH || this.single)) break;
      batch.push(change);
    }
    if (!batch.length) return false;
    this.tell();
    const response = await fetch(`${path}/changes`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ rater: this.rater, changes: batch }),
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (response.status >= 500) throw new Error(response.statusText);
    if (this.single) this.single -= 1;
    if (response.status === 413 || response.status === 422) {
      // The server cannot read one of them: sent one by one, the others pass, and that one is set aside.
      if (batch.length > 1) this.single = batch.length;
      else {
        this.trouble = "";
        this.held.add(batch[0].id);
        this.outcome(path, { id: batch[0].id, item: batch[0].item, status: "unreadable" }, batch[0]);
      }
      return true;
    }
    if (!response.ok) {
      this.trouble = response.status === 404 || response.status === 409 ? "signed_out" : "rejected";
      return false;
    }
    const results = await response.json();
    this.trouble = "";
    this.written += 1;
    results.forEach((result, place) => {
      if (result.status === "conflict") this.held.add(result.id);
      else this.drop(path, result.id);
      this.outcome(path, result, batch[place]);
    });
    return true;
  }
}

// How saving stands, in the page's header.
export function show(words) {
  const place = document.getElementById("save");
  return (name, count) => {
    place.hidden = false;
    place.dataset.state = name;
    place.textContent = words[name].replace("{n}", count);
  };
}
