// Answers that the server has not yet acknowledged: kept in the browser, sent until it has.
//
// Every answer has a key of its own in localStorage, so that two tabs never overwrite each other's; its id makes
// sending it twice harmless. An answer leaves the browser only when the server says that the store holds it.

const BATCH = 50;
const LONGEST_PAUSE_MS = 4000;

export class Answers {
  #waiting; #refused; #isSending = false; #pause = 250; #timer = 0; #unstored = new Map(); #onChange;

  constructor(place, onChange) {
    this.#waiting = `cem-label/${place}/waiting/`;
    this.#refused = `cem-label/${place}/refused/`;
    this.clock = `cem-label/${place}/clock`;
    this.#onChange = onChange;
    this.problem = "";
    this.trouble = 0;
  }

  // Keeps an answer before anything else happens, then sends it; returns its id.
  add(answer) {
    const event = { event_id: this.#newId(), ...answer };
    try {
      localStorage.setItem(this.#waiting + event.event_id, JSON.stringify(event));
    } catch {
      this.#unstored.set(event.event_id, event); // storage is full or forbidden: memory is what is left
      this.problem = "this browser keeps nothing: do not close the page while answers are waiting";
    }
    this.send();
    return event.event_id;
  }

  waiting() {
    const stored = keysUnder(this.#waiting).map((key) => localStorage.getItem(key)).filter(Boolean).map((text) => JSON.parse(text));
    return [...stored, ...this.#unstored.values()].sort((a, b) => (a.event_id < b.event_id ? -1 : 1));
  }

  refused() {
    return keysUnder(this.#refused).map((key) => JSON.parse(localStorage.getItem(key)));
  }

  async send() {
    if (this.#isSending) return;
    this.#isSending = true;
    clearTimeout(this.#timer);
    try {
      for (let batch = this.waiting().slice(0, BATCH); batch.length; batch = this.waiting().slice(0, BATCH)) {
        this.#onChange();
        const reply = await post("answers", { answers: batch });
        const known = new Map(batch.map((event) => [event.event_id, event]));
        for (const { event_id, reason } of reply.refused) {
          if (known.has(event_id)) localStorage.setItem(this.#refused + event_id, JSON.stringify({ ...known.get(event_id), reason }));
        }
        const settled = [...reply.accepted, ...reply.refused.map((item) => item.event_id)].filter((id) => known.has(id));
        for (const id of settled) {
          localStorage.removeItem(this.#waiting + id);
          this.#unstored.delete(id);
        }
        if (!settled.length) throw new Error("the server settled none of the answers");
        this.#pause = 250;
        this.trouble = 0;
      }
      this.trouble = 0;
    } catch (error) {
      this.trouble = error.status || -1;
      this.#timer = setTimeout(() => this.send(), this.#pause);
      this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE_MS);
    } finally {
      this.#isSending = false;
      this.#onChange();
    }
  }

  // Times must rise within a browser even when its clock is set back: the order of answers is the order of ids.
  #newId() {
    let last = 0;
    try { last = Number(localStorage.getItem(this.clock)) || 0; } catch { /* told when the answer itself is kept */ }
    const now = Math.max(Date.now(), Math.max(last, this.last || 0) + 1);
    this.last = now;
    try { localStorage.setItem(this.clock, String(now)); } catch { /* as above */ }
    const random = crypto.getRandomValues(new Uint8Array(8));
    return `${String(now).padStart(13, "0")}-${Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  }
}

function keysUnder(prefix) {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(prefix)).sort();
  } catch {
    return [];
  }
}

export async function post(path, body) {
  return call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
}

export async function call(path, options = {}) {
  const reply = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(20000), ...options });
  if (!reply.ok) {
    const error = new Error((await reply.text()).slice(0, 500) || reply.statusText);
    error.status = reply.status;
    throw error;
  }
  return reply.json();
}
