// The filters beside the gallery: what can be chosen at this stage, with counts, and scores as a histogram to drag over.

import { FATES, PLANES, change, el, id, isCyto, many, state, svg } from "./page.js";

const PATCH_ONLY = ["volume", "axis", "index_from", "index_to", "score_from", "score_to", "duplicates_from", "duplicates_to", "fate"];
const CROP_ONLY = ["category", "source", "licence", "split", "scale_from", "scale_to"];
const WORDS = {
  partition: "dataset", text: "name", volume: "volume", axis: "plane", index_from: "slice ≥", index_to: "slice ≤",
  score_from: "score ≥", score_to: "score ≤", duplicates_from: "stands for ≥", duplicates_to: "stands for ≤", fate: "fate",
  category: "category", source: "source", licence: "licence", split: "split", scale_from: "scale ≥", scale_to: "scale ≤",
};
let timer = 0;

export const has = (overview, column) => (overview.has_column[column] ?? [state.stage]).includes(state.stage);

// A stage keeps the filters that mean something there.
export function toStage(overview, stage, version = "") {
  change({ stage, version, offset: "", open: "", view: "" });
  const wrong = isCyto() ? PATCH_ONLY : CROP_ONLY;
  for (const name of wrong) change({ [name]: "" });
  if (!isCyto() && !has(overview, "informative")) change({ score_from: "", score_to: "" });
  if (!isCyto() && !has(overview, "num_duplicates")) change({ duplicates_from: "", duplicates_to: "" });
  if (!overview.has_fate.includes(stage)) change({ fate: "" });
  const names = overview.datasets.map((dataset) => dataset.name);
  if (state.partition && isCyto() === names.includes(state.partition)) change({ partition: "" });
  change({ sort: state.sort === "random" || state.sort === "name" ? state.sort : "" });
}

export function clearFilters() {
  change(Object.fromEntries(Object.keys(WORDS).map((name) => [name, ""])));
  change({ offset: "" });
}

export function drawChips(labelOf, go) {
  const shown = Object.keys(WORDS).filter((name) => state[name]);
  const word = (name) => (name === "partition" && isCyto() ? "label" : WORDS[name]);
  const value = (name) => (name === "axis" ? PLANES[state[name]] : name === "fate" ? FATES[state[name]] : name === "partition" ? labelOf(state[name]) : state[name]);
  const chips = shown.map((name) => el("button", {
    type: "button", class: "chip", "aria-label": `remove the filter ${word(name)} ${value(name)}`,
    onclick: () => { change({ [name]: "", offset: "" }); go(); },
  }, el("b", { text: word(name) }), ` ${value(name)} `, el("span", { "aria-hidden": "true", text: "×" })));
  if (chips.length > 1) chips.push(el("button", { type: "button", class: "chip all", text: "clear all", onclick: () => { clearFilters(); go(); } }));
  id("chips").replaceChildren(...chips);
}

function later(values, go) {
  clearTimeout(timer);
  timer = setTimeout(() => { change({ ...values, offset: "" }); go(); }, 250);
}

function field(name, kind, label, go, more = {}) {
  const input = el("input", { id: `f-${name}`, type: kind, value: state[name] ?? "", autocomplete: "off", spellcheck: "false", "aria-label": label, ...more });
  input.addEventListener("input", () => { if (input.checkValidity()) later({ [name]: input.value.trim() }, go); });
  return input;
}

function pair(title, low, high, go, more = {}) {
  const options = { min: "0", placeholder: "any", ...more };
  return el("fieldset", {}, el("legend", { text: title }), el("div", { class: "pair" },
    field(low, "number", `${title}, at least`, go, options), el("span", { text: "to" }), field(high, "number", `${title}, at most`, go, options)));
}

function choices(name, title, found, labelOf, go) {
  const shown = found.filter((item) => item.value !== null && item.value !== "");
  if (shown.length < 2 && !state[name]) return null;
  const most = Math.max(...shown.map((item) => item.num), 1);
  const lines = shown.map((item) => {
    const isChosen = String(item.value) === state[name];
    const bar = el("i", { "aria-hidden": "true" });
    bar.style.width = `${(100 * item.num) / most}%`;
    return el("button", {
      type: "button", class: "choice", "aria-pressed": String(isChosen), title: labelOf(item),
      onclick: () => { change({ [name]: isChosen ? "" : String(item.value), offset: "" }); go(); },
    }, bar, el("span", { text: labelOf(item) }), el("em", { text: many(item.num) }));
  });
  return el("fieldset", { "data-name": name }, el("legend", { text: title }), el("div", { class: "choices" }, ...lines));
}

const W = 240, H = 64;

// Bars of 40 bins over 0..1 on a root scale, so that rare scores are seen beside frequent ones; drag to choose a range.
function histogram(title, low, high, bins, go) {
  const most = Math.max(...bins, 1);
  const from = Number(state[low] ?? 0), to = Number(state[high] ?? 1);
  const bars = bins.map((num, number) => {
    const height = num ? Math.max(1.5, H * Math.sqrt(num / most)) : 0;
    const isIn = (number + 1) / bins.length > from && number / bins.length < to;
    return svg("rect", { x: (number * W) / bins.length + 0.5, y: H - height, width: W / bins.length - 1, height, class: isIn ? "in" : "out" });
  });
  const chosen = svg("rect", { x: from * W, y: 0, width: Math.max((to - from) * W, 1), height: H, class: state[low] || state[high] ? "window" : "hidden" });
  const chart = svg("svg", { viewBox: `0 0 ${W} ${H + 1}`, role: "img", "aria-label": `${title}, histogram; drag to choose a range` }, chosen, ...bars, svg("line", { x1: 0, x2: W, y1: H + 0.5, y2: H + 0.5 }));
  let start = null;
  const at = (event) => {
    const box = chart.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  };
  chart.addEventListener("pointerdown", (event) => { start = at(event); chart.setPointerCapture(event.pointerId); });
  chart.addEventListener("pointermove", (event) => {
    if (start === null) return;
    const [a, b] = [start, at(event)].sort((one, other) => one - other);
    chosen.setAttribute("class", "window");
    chosen.setAttribute("x", a * W);
    chosen.setAttribute("width", Math.max((b - a) * W, 1));
  });
  chart.addEventListener("pointerup", (event) => {
    const [a, b] = [start, at(event)].sort((one, other) => one - other);
    start = null;
    if (b - a < 0.01) change({ [low]: "", [high]: "", offset: "" });
    else change({ [low]: a < 0.005 ? "" : a.toFixed(3), [high]: b > 0.995 ? "" : b.toFixed(3), offset: "" });
    go();
  });
  return el("fieldset", { "data-name": low }, el("legend", { text: title }), chart, el("div", { class: "ends" }, el("span", { text: "0" }), el("span", { text: "1" })),
    el("div", { class: "pair" }, field(low, "number", `${title}, at least`, go, { min: "0", max: "1", step: "any", placeholder: "0" }), el("span", { text: "to" }),
      field(high, "number", `${title}, at most`, go, { min: "0", max: "1", step: "any", placeholder: "1" })));
}

export function drawFilters(overview, facets, go) {
  const box = id("filters");
  const active = document.activeElement?.id;
  const place = document.activeElement?.selectionStart;
  const scrolled = Object.fromEntries([...box.querySelectorAll("[data-name]")].map((set) => [set.dataset.name, set.querySelector(".choices")?.scrollTop ?? 0]));
  const parts = [el("fieldset", {}, el("legend", { text: isCyto() ? "Search in names and labels" : "Search in names" }), field("text", "search", "Search", go, { placeholder: isCyto() ? "label, file, compound …" : "part of a name", maxlength: "300" }))];
  if (isCyto()) {
    const named = (item) => item.label ?? String(item.value);
    parts.push(choices("category", "Category", facets?.category ?? [], (item) => item.value.replaceAll("_", " "), go));
    parts.push(choices("partition", "Label", facets?.partition ?? [], named, go));
    parts.push(choices("source", "Source", facets?.source ?? [], named, go));
    if (facets?.bins) parts.push(histogram("Scale", "scale_from", "scale_to", facets.bins, go));
    parts.push(choices("licence", "Licence", facets?.licence ?? [], named, go));
    parts.push(choices("split", "Split", facets?.split ?? [], named, go));
  } else {
    const isKnown = facets?.dataset?.length > 1 || state.partition;
    const counts = overview.datasets.filter((dataset) => state.stage === "release" || dataset.counts[state.stage] !== undefined);
    const all = facets && !state.partition ? facets.dataset : counts.map((dataset) => ({ value: dataset.name, num: dataset.counts[state.stage] ?? dataset.counts.filtered ?? 0 }));
    parts.push(isKnown || counts.length > 1 ? choices("partition", "Dataset", all, (item) => String(item.value), go) : null);
    if (overview.has_fate.includes(state.stage)) parts.push(fates(go));
    if (facets?.bins) parts.push(histogram("Informative score", "score_from", "score_to", facets.bins, go));
    parts.push(choices("axis", "Plane", facets?.axis ?? [], (item) => PLANES[item.value], go));
    parts.push(choices("volume", "Volume or image", facets?.volume ?? [], (item) => String(item.value), go));
    if (has(overview, "num_duplicates")) parts.push(pair("Stands for duplicates", "duplicates_from", "duplicates_to", go));
    parts.push(pair("Slice", "index_from", "index_to", go));
  }
  box.replaceChildren(...parts.filter(Boolean));
  for (const set of box.querySelectorAll("[data-name]")) if (scrolled[set.dataset.name] && set.querySelector(".choices")) set.querySelector(".choices").scrollTop = scrolled[set.dataset.name];
  if (active?.startsWith("f-")) {
    const again = id(active);
    again?.focus();
    if (again?.type === "search" && place !== undefined && place !== null) again.setSelectionRange(place, place);
  }
}

function fates(go) {
  const names = state.stage === "raw" ? Object.keys(FATES) : Object.keys(FATES).filter((name) => name !== "duplicate");
  const buttons = names.map((name) => el("button", {
    type: "button", class: `fate ${name.split(" ")[0]}`, "aria-pressed": String(state.fate === name), text: FATES[name],
    onclick: () => { change({ fate: state.fate === name ? "" : name, offset: "" }); go(); },
  }));
  return el("fieldset", {}, el("legend", { text: "What became of them" }), el("div", { class: "fates" }, ...buttons));
}

export function drawOrder(overview, go) {
  const sorts = isCyto()
    ? { "": "as stored", random: "at random", scale_down: "largest scale first", scale_up: "smallest scale first", name: "by name" }
    : { "": "as stored", random: "at random", score_down: "highest score first", score_up: "lowest score first", duplicates_down: "most duplicates first", name: "by name" };
  if (!isCyto() && !has(overview, "informative")) { delete sorts.score_down; delete sorts.score_up; }
  if (!isCyto() && !has(overview, "num_duplicates")) delete sorts.duplicates_down;
  const chosen = el("select", { id: "sort", "aria-label": "Order", onchange: (event) => { change({ sort: event.target.value, offset: "" }); go(); } },
    ...Object.entries(sorts).map(([value, text]) => el("option", { value, text, selected: (state.sort ?? "") === value })));
  const seed = el("input", { id: "seed", type: "number", min: "0", step: "1", value: state.seed ?? "0", "aria-label": "Seed of the random order" });
  seed.addEventListener("change", () => { if (seed.checkValidity()) { change({ seed: seed.value, offset: "" }); go(); } });
  const parts = [el("label", { for: "sort", text: "Order" }), chosen];
  if (state.sort === "random") parts.push(el("label", { for: "seed", text: "seed" }), seed, el("button", { type: "button", text: "again", title: "another random order (r)", onclick: () => shuffle(go) }));
  id("order").replaceChildren(...parts);
}

export function shuffle(go) {
  change({ sort: "random", seed: String(state.sort === "random" ? Number(state.seed ?? 0) + 1 : Number(state.seed ?? 0)), offset: "" });
  go();
}
