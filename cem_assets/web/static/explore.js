// The explorer: pictures of one stage in a gallery, by filters; the state of the page is its address.

import { closeDetails, exemplarOf, isHere, onVisit, openDetails, opened, stepSlice } from "./details.js";
import { clearFilters, drawChips, drawFilters, drawOrder, shuffle, toStage } from "./filters.js";
import { FATES, PLANES, call, change, el, id, imageOf, isCyto, many, query, readAddress, recall, remember, state, writeAddress } from "./page.js";

const PAGE = 60;
const STAGE_WORDS = { raw: "Raw", deduplicated: "Exemplars", scores: "Scored", filtered: "Filtered", crops: "Crops" };
let overview, facets = null, rows = [], total = null, cursor = 0, asking = null, labels = new Map();
let numCopied = 0;
let side = Math.min(Math.max(Number(recall("side")) || 148, 96), 256);

const offset = () => Number(state.offset ?? 0);
const isLabels = () => isCyto() && !state.partition && state.view !== "crops";
const keyOf = (row) => (isCyto() ? [row.partition, row.filename] : [row.dataset, row.name]);

function drawStages() {
  const known = Object.keys(STAGE_WORDS).filter((stage) => (stage === "crops" ? overview.has_crops : overview.datasets.some((dataset) => dataset.counts[stage] !== undefined)));
  const sum = (stage) => overview.datasets.reduce((total_, dataset) => total_ + (dataset.counts[stage] ?? 0), 0);
  const tab = (stage, version, text, num) => {
    const isHereNow = state.stage === stage && (state.version ?? "") === version;
    return el("button", { type: "button", class: "stage", "aria-current": isHereNow ? "page" : "false", "data-stage": stage, onclick: () => { toStage(overview, stage, version); go(); } },
      el("span", { text }), num === null ? "" : el("small", { text: many(num) }));
  };
  const chooser = (stage, releases, text) => {
    if (!releases.length) return "";
    const isHereNow = state.stage === stage;
    const newest = releases.at(-1).version;
    const version = isHereNow ? state.version ?? newest : newest;
    const found = releases.find((release) => release.version === version) ?? releases.at(-1);
    const button = tab(stage, version, text, found.num);
    const select = el("select", { "aria-label": `version of the ${text.toLowerCase()}`, onchange: (event) => { toStage(overview, stage, event.target.value); go(); } },
      ...releases.toReversed().map((release) => el("option", { value: release.version, text: release.version, selected: release.version === version })));
    return el("span", { class: "versions" }, button, select);
  };
  id("stages").replaceChildren(...known.filter((stage) => stage !== "crops").map((stage) => tab(stage, "", STAGE_WORDS[stage], sum(stage))),
    chooser("release", overview.releases, "Release"), known.includes("crops") ? tab("crops", "", "CytoImageNet crops", null) : "",
    chooser("cyto_release", overview.cyto_releases, "CytoImageNet release"));
  id("store").textContent = overview.store;
  id("store").title = overview.store;
}

function go(isNew = true) {
  writeAddress(isNew);
  drawStages();
  refresh();
}

async function refresh() {
  asking?.abort();
  const mine = asking = new AbortController();
  const slow = setTimeout(() => watchCopying(mine), 600);
  document.body.classList.add("busy");
  id("alarm").textContent = "";
  drawChips((key) => labels.get(key) ?? key, go);
  drawOrder(overview, go);
  if (isCyto() && !state.partition) {
    const text = isLabels() ? "show crops" : "show labels";
    id("order").prepend(el("button", { type: "button", id: "view", text, onclick: () => { change({ view: isLabels() ? "crops" : "", offset: "" }); go(); } }));
  }
  drawFilters(overview, facets, go);
  try {
    const found = isLabels()
      ? (await call("labels", query(), mine.signal)).labels
      : (await call("rows", query({ offset: offset(), limit: PAGE }), mine.signal)).rows;
    if (mine !== asking) return;
    rows = isLabels() ? found.slice(offset(), offset() + PAGE) : found;
    if (isLabels()) labels = new Map(found.map((row) => [row.partition, row.label]));
    total = isLabels() ? found.length : rows.length < PAGE && (rows.length || !offset()) ? offset() + rows.length : null;
    cursor = Math.min(cursor, Math.max(rows.length - 1, 0));
    drawGrid();
    drawTotal();
    performance.mark("gallery");
    if (total === null) {
      total = (await call("count", query(), mine.signal)).num;
      if (mine !== asking) return;
      drawTotal();
    }
    facets = await call("facets", query(), mine.signal);
    if (mine !== asking) return;
    for (const item of facets.partition ?? []) labels.set(item.value, item.label);
    drawChips((key) => labels.get(key) ?? key, go);
    drawFilters(overview, facets, go);
    performance.mark("filters");
  } catch (error) {
    if (error.name === "AbortError") return;
    if (mine === asking) {
      rows = [];
      total = null;
      drawGrid();
      id("total").textContent = "";
      id("alarm").textContent = error.message;
    }
  } finally {
    clearTimeout(slow);
    if (mine === asking) document.body.classList.remove("busy");
  }
}

async function watchCopying(mine) {
  const before = numCopied;
  while (mine === asking && document.body.classList.contains("busy")) {
    try {
      const { num_rows_copied: num } = await call("progress");
      numCopied = num;
      if (num > before && mine === asking && total === null && !rows.length) id("total").textContent = `reading columns: ${many(num)} rows so far (only the first time)`;
    } catch { return; }
    await new Promise((done) => setTimeout(done, 500));
  }
}

function drawTotal() {
  const what = isLabels() ? "labels" : isCyto() ? "crops" : state.stage === "deduplicated" ? "exemplars" : "patches";
  id("total").replaceChildren(el("b", { text: total === null ? "…" : many(total) }), ` ${what}`);
  const last = total === null ? offset() + rows.length : total;
  const numPages = total === null ? null : Math.max(Math.ceil(total / PAGE), 1);
  id("page").textContent = rows.length ? `${many(offset() + 1)} – ${many(offset() + rows.length)}${numPages ? ` · page ${many(offset() / PAGE + 1)} of ${many(numPages)}` : ""}` : "";
  id("previous").disabled = !offset();
  id("next").disabled = rows.length < PAGE || offset() + rows.length >= last && total !== null;
  id("pager").hidden = !rows.length;
}

function caption(row) {
  if (isLabels()) return el("span", { class: "text" }, el("b", { text: row.label }), el("small", { text: `${row.category.replaceAll("_", " ")} · ${many(row.num)}` }));
  if (isCyto()) return el("span", { class: "text" }, el("b", { text: state.partition ? row.source : row.label }), el("small", { text: state.partition ? `scale ${row.scaling}` : row.source }));
  const place = row.axis < 0 ? "2D" : `${PLANES[row.axis]} ${row.index}`;
  const text = el("span", { class: "text" }, el("b", { text: row.informative !== undefined && row.informative !== null ? row.informative.toFixed(3) : place }));
  const more = [row.informative !== undefined && row.informative !== null ? place : "", row.num_duplicates ? `+${many(row.num_duplicates)}` : "", row.distance !== undefined ? `${row.distance} bits` : ""].filter(Boolean);
  text.append(el("small", { text: more.join(" · ") }));
  return text;
}

function drawGrid() {
  const box = id("grid");
  const hadFocus = box.contains(document.activeElement);
  const columns = Math.max(1, Math.floor((box.clientWidth + 10) / (side + 10)));
  box.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  box.dataset.columns = String(columns);
  const lines = [];
  rows.forEach((row, number) => {
    if (number % columns === 0) lines.push(el("div", { role: "row" }));
    const [partition, name] = keyOf(row);
    const fate = row.fate ?? "";
    const image = el("img", { alt: "", width: "224", height: "224", decoding: "async", src: imageOf({ partition, name, v: row.v, part: row.part, row_group: row.row_group }) });
    image.addEventListener("error", () => cell.classList.add("lost"));
    const cell = el("div", {
      role: "gridcell", class: `cell ${fate.split(" ")[0]}`, tabindex: number === cursor ? "0" : "-1", title: isLabels() ? row.label : name,
      "aria-label": isLabels() ? `label ${row.label}, ${row.num} images` : `${name}${fate ? `, ${FATES[fate] ?? fate}` : ""}`,
      "aria-selected": String(isHere(partition, name)), "data-number": String(number), "data-name": name,
      onclick: () => { cursor = number; open(number); }, onfocus: () => { cursor = number; },
    }, el("span", { class: "picture" }, image), caption(row), fate && fate !== "kept" ? el("span", { class: `badge ${fate.split(" ")[0]}`, text: FATES[fate] ?? fate }) : "");
    lines.at(-1).append(cell);
  });
  if (!rows.length) lines.push(el("p", { class: "empty" }, id("alarm").textContent ? "" : "Nothing here fits these filters. ", el("button", { type: "button", text: "Clear the filters", onclick: () => { clearFilters(); go(); } })));
  box.replaceChildren(...lines);
  if (hadFocus) focusCell();
}

function focusCell() { id("grid").querySelector(`[data-number="${cursor}"]`)?.focus({ preventScroll: false }); }

function markOpen() {
  for (const cell of id("grid").querySelectorAll(".cell")) {
    const row = rows[Number(cell.dataset.number)];
    cell.setAttribute("aria-selected", String(Boolean(row) && isHere(...keyOf(row))));
  }
}

function open(number) {
  const row = rows[number];
  if (!row) return;
  if (isLabels()) {
    change({ partition: row.partition, offset: "" });
    return go();
  }
  const [partition, name] = keyOf(row);
  show({ partition, name, stage: state.stage, version: state.version });
}

// `open` in the address is stage, partition and name of what the details show, one a line.
async function show(item, isNew = true) {
  change({ open: item ? [item.stage, item.partition, item.name].join("\n") : "" });
  if (isNew) writeAddress(true);
  if (!item) {
    closeDetails();
    layout();
    return focusCell();
  }
  const wasOpen = Boolean(opened());
  try {
    await openDetails(item.partition, item.name, item.stage, item.stage === state.stage ? state.version : item.version);
    if (!wasOpen) layout();
    markOpen();
  } catch (error) {
    if (error.name !== "AbortError") id("alarm").textContent = error.message;
  }
}

function layout() {
  const columns = Math.max(1, Math.floor((id("grid").clientWidth + 10) / (side + 10)));
  if (rows.length && id("grid").dataset.columns !== String(columns)) drawGrid();
}

function turn(by) {
  const target = Math.max(offset() + by * PAGE, 0);
  if ((by > 0 && id("next").disabled) || target === offset()) return;
  change({ offset: target ? String(target) : "" });
  cursor = 0;
  go();
  id("gallery").scrollTop = 0;
}

function move(key) {
  const columns = Number(id("grid").dataset.columns);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -cursor, End: rows.length - 1 - cursor }[key];
  const target = cursor + step;
  if (target < 0 || target >= rows.length) return;
  id("grid").querySelector(`[data-number="${cursor}"]`)?.setAttribute("tabindex", "-1");
  cursor = target;
  id("grid").querySelector(`[data-number="${cursor}"]`)?.setAttribute("tabindex", "0");
  focusCell();
  if (opened() && !isLabels()) open(cursor);
}

function resize(by) {
  side = Math.min(Math.max(side + by, 96), 256);
  remember("side", String(side));
  drawGrid();
}

const KEYS = {
  n: () => turn(1), p: () => turn(-1), r: () => shuffle(go), c: () => { clearFilters(); go(); }, "+": () => resize(26), "=": () => resize(26), "-": () => resize(-26),
  "[": () => stepSlice(-1), "]": () => stepSlice(1), "?": () => id("help").showModal(), e: () => { const found = exemplarOf(); if (found) show(found); },
};

document.addEventListener("keydown", (event) => {
  if (!overview || event.ctrlKey || event.altKey || event.metaKey || id("help").open) return;
  const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (event.key === "Escape") {
    if (isTyping) return event.target.blur();
    if (opened()) show(null);
    return;
  }
  if (isTyping) return;
  if (event.key === "/") {
    event.preventDefault();
    return id("f-text").focus();
  }
  if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") {
    if (id("details").contains(document.activeElement)) return;
    event.preventDefault();
    return move(event.key);
  }
  if (event.key === "Enter" && !(event.target instanceof HTMLButtonElement) && !(event.target instanceof HTMLAnchorElement)) {
    event.preventDefault();
    return open(cursor);
  }
  KEYS[event.key]?.();
});

id("previous").addEventListener("click", () => turn(-1));
id("next").addEventListener("click", () => turn(1));
id("keys").addEventListener("click", () => id("help").showModal());
window.addEventListener("resize", layout);
window.addEventListener("popstate", () => arrive(false));
onVisit((item) => show(item));

function arrive(isFirst) {
  readAddress();
  if (!state.stage) {
    const stage = ["filtered", "scores", "deduplicated", "raw"].find((name) => overview.datasets.some((dataset) => dataset.counts[name] !== undefined));
    change({ stage: stage ?? (overview.has_crops ? "crops" : "raw") });
  }
  const lists = { release: overview.releases, cyto_release: overview.cyto_releases };
  if (lists[state.stage] && !state.version) change({ version: lists[state.stage].at(-1)?.version ?? "" });
  drawStages();
  writeAddress(false);
  refresh();
  const [stage, partition, name] = (state.open ?? "").split("\n");
  if (name) show({ stage, partition, name, version: state.version }, false);
  else if (!isFirst) { closeDetails(); layout(); }
}

async function start() {
  try {
    overview = await call("overview");
  } catch (error) {
    id("alarm").textContent = `The page could not start: ${error.message}. It tries again.`;
    return setTimeout(start, 2000);
  }
  id("alarm").textContent = "";
  arrive(true);
}

start();
