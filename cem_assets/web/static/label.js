// The labelling page: patches one by one or in a grid, answered by keyboard.
//
// What was answered is kept and sent by answers.js. A patch can be answered only once its picture is shown.

import { Answers, call, post } from "./answers.js";

const AHEAD = 60; // patches fetched in advance, pictures and all, so that a short outage is not noticed
const HELD_MOST = 300; // a page asks for no patch it holds
const WORDS = { good: "good", bad: "bad", skip: "skipped" };
const LABEL_OF = { g: "good", b: "bad", s: "skip" };
const id = (name) => document.getElementById(name);

let session, answers, annotator, classifier = "";
let upcoming = []; // names, next first
let page = []; // [{ name, label }] on the screen
let cursor = 0;
let isGrid = false, side = 3;
let history = []; // [{ id, name, label }] of this tab, newest last
let isFetching = false, isExhausted = false, fetchTimer = 0;
const pictures = new Map(); // name -> <img>
const failures = new Set(); // names whose picture could not be loaded so far

function place(what) { return `cem-label/${session.store}/${session.dataset}/${what}`; }

function remember(key, value) { try { localStorage.setItem(key, value); } catch { /* a wish, not an answer */ } }

function recall(key) { try { return localStorage.getItem(key) || ""; } catch { return ""; } }

function picture(name) {
  if (!pictures.has(name)) load(name, 250);
  return pictures.get(name);
}

function load(name, pause) {
  const image = new Image();
  image.alt = "";
  image.draggable = false;
  pictures.set(name, image);
  image.addEventListener("load", () => { if (page.some((cell) => cell.name === name)) draw(); });
  image.addEventListener("error", () => setTimeout(() => {
    if (pictures.get(name) !== image) return;
    failures.add(name);
    load(name, Math.min(2 * pause, 4000));
    if (page.some((cell) => cell.name === name)) draw();
  }, pause));
  image.src = `image?name=${encodeURIComponent(name)}&v=${session.version}`;
}

function isShown(name) {
  const image = pictures.get(name);
  return Boolean(image && image.complete && image.naturalWidth > 0);
}

async function fetchMore() {
  if (isFetching || isExhausted || upcoming.length >= AHEAD) return;
  isFetching = true;
  clearTimeout(fetchTimer);
  const asking = annotator;
  try {
    // What this annotator answered lately may still be on its way to the store.
    const waiting = answers.waiting().filter((event) => event.annotator === asking && event.label !== "undo").map((event) => event.name);
    const held = [...new Set([...page.map((cell) => cell.name), ...upcoming, ...waiting])].slice(-HELD_MOST);
    const reply = await post("next", { annotator: asking, num: AHEAD, held });
    if (asking === annotator) {
      classifier = reply.classifier;
      const known = new Set([...held, ...waiting, ...page.map((cell) => cell.name)]);
      const fresh = reply.patches.filter((name) => !known.has(name));
      upcoming.push(...fresh);
      isExhausted = !fresh.length;
      upcoming.forEach(picture);
    }
  } catch {
    fetchTimer = setTimeout(fetchMore, 1000); // the line about saving says that the server is away
  } finally {
    isFetching = false;
  }
  if (page.length < (isGrid ? side * side : 1)) fill();
}

function fill() {
  const wanted = isGrid ? side * side : 1;
  while (page.length < wanted && upcoming.length) page.push({ name: upcoming.shift(), label: "" });
  if (upcoming.length < AHEAD - 20) fetchMore();
  draw();
}

function draw() {
  const box = id("patches");
  const columns = isGrid ? side : 1;
  const hadFocus = box.contains(document.activeElement);
  box.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  const rows = [];
  page.forEach((cell, number) => {
    if (number % columns === 0) { rows.push(document.createElement("div")); rows.at(-1).setAttribute("role", "row"); }
    const item = document.createElement("div");
    const words = cell.label ? WORDS[cell.label] : isShown(cell.name) ? "not answered" : "picture is loading";
    item.className = `patch ${cell.label} ${number === cursor ? "active" : ""}`;
    item.setAttribute("role", "gridcell");
    item.setAttribute("aria-label", `patch ${cell.name}, ${words}`);
    item.setAttribute("aria-selected", String(number === cursor));
    item.tabIndex = number === cursor ? 0 : -1;
    item.dataset.name = cell.name;
    item.dataset.shown = String(isShown(cell.name));
    const word = document.createElement("span");
    word.textContent = cell.label ? WORDS[cell.label] : "";
    item.append(picture(cell.name), word);
    item.addEventListener("click", () => { cursor = number; draw(); box.querySelector(".active").focus(); });
    rows.at(-1).append(item);
  });
  box.replaceChildren(...rows);
  if (hadFocus) box.querySelector(".active")?.focus({ preventScroll: true });
  id("name").textContent = page[cursor]?.name ?? (isExhausted ? "No patch is left: all are answered." : "Fetching patches …");
}

const KEPT_FOR_UNDO = 40; // pictures of the last answers stay, so that undo works while the server is away

function forget(name) {
  if (!page.some((cell) => cell.name === name) && !upcoming.includes(name)) pictures.delete(name);
}

function answer(cell, label) {
  const event = { name: cell.name, label, annotator, classifier };
  history.push({ id: answers.add(event), name: cell.name, label });
  if (history.length > KEPT_FOR_UNDO) forget(history.at(-KEPT_FOR_UNDO - 1).name);
  history = history.slice(-1000);
  keepHistory();
  cell.label = label;
}

function answerCurrent(label) {
  const cell = page[cursor];
  if (!cell) return say("There is no patch to answer.");
  if (!isShown(cell.name) && !(label === "skip" && failures.has(cell.name))) {
    return say("The picture is not there yet; nothing was answered. A picture that does not come can be skipped.");
  }
  answer(cell, label);
  say(`${WORDS[label]}: ${cell.name}`);
  if (isGrid) {
    const after = page.findIndex((other, number) => number > cursor && !other.label);
    const any = page.findIndex((other) => !other.label);
    if (any < 0) say(`${WORDS[label]}; the grid is done, Enter shows the next one`);
    cursor = after >= 0 ? after : any >= 0 ? any : cursor;
    draw();
  } else {
    page = [];
    cursor = 0;
    fill();
  }
}

function answerRest(label) {
  const left = page.filter((cell) => !cell.label && isShown(cell.name));
  left.forEach((cell) => answer(cell, label));
  say(`${left.length} patches ${WORDS[label]}; Enter shows the next grid`);
  draw();
}

function undo() {
  const last = history.pop();
  if (!last) return say("There is nothing to undo in this tab.");
  keepHistory();
  answers.add({ name: last.name, label: "undo", undoes: last.id, annotator, classifier });
  const before = history.findLast((item) => item.name === last.name)?.label ?? "";
  let number = page.findIndex((cell) => cell.name === last.name);
  if (number < 0) {
    upcoming = upcoming.filter((name) => name !== last.name);
    if (isGrid) {
      page.unshift({ name: last.name, label: before });
      if (page.length > side * side && !page.at(-1).label) upcoming.unshift(page.pop().name);
    } else {
      upcoming.unshift(...page.map((cell) => cell.name));
      page = [{ name: last.name, label: before }];
    }
    number = 0;
  }
  page[number].label = before;
  cursor = number;
  say(`taken back: ${last.label} of ${last.name}`);
  draw();
}

function turnPage() {
  const numDone = page.filter((cell) => cell.label).length;
  page = page.filter((cell) => !cell.label);
  cursor = 0;
  fill();
  say(numDone ? `next grid; ${numDone} answers before` : "Nothing here is answered yet.");
}

function setView(grid, newSide) {
  upcoming.unshift(...page.filter((cell) => !cell.label).map((cell) => cell.name));
  page = [];
  cursor = 0;
  isGrid = grid;
  side = Math.min(6, Math.max(2, newSide));
  remember(place("view"), JSON.stringify([isGrid, side]));
  fill();
  say(isGrid ? `grid of ${side} x ${side}` : "single patches");
}

function move(key) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side, Home: -cursor, End: page.length - 1 - cursor }[key];
  const target = cursor + step;
  if (target < 0 || target >= page.length) return;
  cursor = target;
  draw();
  id("patches").querySelector(".active").focus({ preventScroll: true });
}

function press(key) {
  if (LABEL_OF[key]) return answerCurrent(LABEL_OF[key]);
  if (isGrid && (key === "G" || key === "B")) return answerRest(LABEL_OF[key.toLowerCase()]);
  if (key === "u") return undo();
  if (key === "m") return setView(!isGrid, side);
  if (isGrid && (key === "+" || key === "=")) return setView(true, side + 1);
  if (isGrid && key === "-") return setView(true, side - 1);
  if (key === "?") return id("help").showModal();
}

document.addEventListener("keydown", (event) => {
  if (!session || event.ctrlKey || event.altKey || event.metaKey || id("help").open) return;
  if (event.target instanceof HTMLInputElement) return;
  if (isGrid && (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End")) {
    event.preventDefault();
    move(event.key);
  } else if (isGrid && event.key === "Enter" && !(event.target instanceof HTMLButtonElement)) {
    event.preventDefault();
    turnPage();
  } else if (!event.repeat) { // a key held down is one answer
    press(event.shiftKey ? event.key : event.key.length === 1 ? event.key.toLowerCase() : event.key);
  }
});

id("buttons").addEventListener("click", (event) => {
  const key = event.target.closest("button")?.dataset.key;
  if (key && session) press(key);
});

id("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = id("annotator").value.trim();
  if (!/^[A-Za-z0-9]([A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?$/.test(name) || name.includes("..")) {
    return say("A name has letters, digits and inner . _ @ - only.");
  }
  annotator = name;
  remember(place("annotator"), name);
  upcoming = [];
  page = [];
  history = [];
  keepHistory();
  cursor = 0;
  isExhausted = false;
  fill();
  id("patches").focus();
  say(`answers are now those of ${name}`);
});

window.addEventListener("beforeunload", (event) => { if (answers?.waiting().length) event.preventDefault(); });
window.addEventListener("online", () => answers?.send());

function keepHistory() {
  try { sessionStorage.setItem(place("history"), JSON.stringify({ annotator, history })); } catch { /* undo ends with the page then */ }
}

function recallHistory() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(place("history")) ?? "{}");
    return kept.annotator === annotator && Array.isArray(kept.history) ? kept.history : [];
  } catch {
    return [];
  }
}

function say(text) { id("status").textContent = text; }

function showSaving() {
  const num = answers.waiting().length;
  const refused = answers.refused();
  id("saving").textContent = num ? `${num} answer(s) waiting to be saved` : "All answers are saved.";
  id("saving").dataset.waiting = String(num);
  let alarm = answers.problem;
  if (answers.trouble === 403) alarm = "This address is no longer valid; open the one that cem-assets label printed. Answers are kept.";
  else if (answers.trouble) alarm = `The server cannot be reached or cannot save (${answers.trouble}); answers are kept here and sent again.`;
  if (refused.length) alarm += ` ${refused.length} answer(s) were refused: ${refused.at(-1).reason}`;
  if (id("alarm").textContent !== alarm) id("alarm").textContent = alarm;
  if (!num) showProgress();
}

let lastProgress = 0, progressTimer = 0;

async function showProgress() {
  clearTimeout(progressTimer);
  const wait = lastProgress + 2000 - performance.now();
  progressTimer = setTimeout(showProgress, wait > 0 ? wait : 20000);
  if (wait > 0) return;
  lastProgress = performance.now();
  let found;
  try { found = await call("progress"); } catch { return; }
  const enough = Math.max(session.num_needed, 1);
  id("bar").max = found.num_labelled < enough ? enough : found.num_patches;
  id("bar").value = found.num_labelled;
  id("barlabel").textContent = `${found.num_labelled} of ${found.num_patches} patches labelled; ${enough} are needed to train`;
  id("annotators").replaceChildren(...found.annotators.map((row) => {
    const line = document.createElement("tr");
    for (const value of [row.annotator, row.good, row.bad, row.skip]) {
      line.append(document.createElement("td"));
      line.lastChild.textContent = value;
    }
    return line;
  }));
  const kappa = found.kappa === null ? "" : `, Cohen's kappa ${found.kappa.toFixed(2)}`;
  id("agreement").textContent = found.num_shared
    ? `Agreement on ${found.num_shared} patches that several labelled: ${(100 * found.observed).toFixed(0)} %${kappa}; ${found.num_conflicts} conflict(s).`
    : "No patch was labelled by two annotators yet.";
}

async function start() {
  try {
    session = await call("session");
    remember(`cem-door/label/${session.dataset}`, location.pathname); // for the link in Dagster, which knows no token: door.py
  } catch (error) {
    id("alarm").textContent = `The page could not start (${error.message}); it tries again.`;
    return setTimeout(start, 2000);
  }
  id("alarm").textContent = "";
  id("dataset").textContent = session.dataset;
  document.title = `Label ${session.dataset}`;
  id("about").textContent = `${session.num_patches} patches of ${session.asset}, ${session.order === "random" ? "in random order" : "the least certain first"}`;
  annotator = recall(place("annotator")) || session.annotator;
  id("annotator").value = annotator;
  answers = new Answers(`${session.store}/${session.dataset}`, showSaving);
  history = recallHistory();
  try { [isGrid, side] = JSON.parse(recall(place("view"))); } catch { /* never chosen: single patches */ }
  id("patches").focus();
  answers.send();
  showProgress();
  fetchMore();
}

start();
