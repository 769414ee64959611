// What all parts of the explorer share: the state (as the address holds it), requests, and elements.

export const id = (name) => document.getElementById(name);

// Elements are made of text and attributes alone, so names never become markup.
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  put(made, attributes);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http" + "://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function put(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
}

export const FIELDS = [
  "stage", "version", "partition", "text", "volume", "axis", "index_from", "index_to", "score_from", "score_to",
  "duplicates_from", "duplicates_to", "fate", "category", "source", "licence", "split", "scale_from", "scale_to", "sort", "seed",
];
const KEPT = [...FIELDS, "offset", "view", "open"];
export const PLACE_OF = { open: "open", view: "view" };

export let state = {};

export function readAddress() {
  const found = new URLSearchParams(location.search);
  state = Object.fromEntries(KEPT.filter((name) => found.get(name)).map((name) => [name, found.get(name)]));
}

export function writeAddress(isNew) {
  const kept = new URLSearchParams(KEPT.filter((name) => state[name]).map((name) => [name, state[name]]));
  const url = `${location.pathname}?${kept}`;
  if (url === location.pathname + location.search) return;
  if (isNew) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
}

export function change(values) {
  state = { ...state, ...values };
  for (const [name, value] of Object.entries(state)) if (value === "" || value === null || value === undefined) delete state[name];
}

export const isCyto = () => state.stage === "crops" || state.stage === "cyto_release";

export function query(more = {}) {
  const pairs = [...FIELDS.map((name) => [name, state[name]]), ...Object.entries(more)];
  return new URLSearchParams(pairs.filter(([, value]) => value !== undefined && value !== "" && value !== null).map(([name, value]) => [name, String(value)]));
}

export async function call(path, parameters, signal) {
  let answer;
  try {
    answer = await fetch(parameters ? `${path}?${parameters}` : path, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server cannot be reached; is cem-assets explore still running?");
  }
  if (answer.status === 403) throw new Error("this address is no longer valid; open the one that cem-assets explore printed");
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 500) || `the server answered ${answer.status}`);
  return answer.json();
}

export function imageOf(row, exact) {
  const wish = { stage: state.stage, version: state.version, ...row, exact };
  const names = ["stage", "version", "partition", "name", "v", "part", "row_group", "exact"];
  return `image?${new URLSearchParams(names.filter((name) => wish[name] !== undefined && wish[name] !== "" && wish[name] !== false).map((name) => [name, String(wish[name])]))}`;
}

export const many = (number) => Number(number).toLocaleString("en");
export const PLANES = { "-1": "2D", 0: "xy", 1: "xz", 2: "yz" };
export const FATES = {
  kept: "kept", duplicate: "duplicate", uninformative: "uninformative", "over max_patches": "over the limit", undecided: "not decided yet",
};

export function remember(key, value) { try { localStorage.setItem(`cem-explore/${key}`, value); } catch { /* a wish */ } }

export function recall(key) { try { return localStorage.getItem(`cem-explore/${key}`) ?? ""; } catch { return ""; } }
