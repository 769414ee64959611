// One patch or crop: its picture, where it lies, what is like it, what became of it, how to open it elsewhere.

import { FATES, PLANES, call, el, id, imageOf, isCyto, many, state, svg } from "./page.js";

const MAX_SLICE = 1120; // as the server cuts slices
let shown = null; // what is open
let view = null; // { index, y, x } of the slice on the screen
let visit = () => {};
let asking = null;

export function onVisit(go) { visit = go; }

export const opened = () => shown;

export async function openDetails(partition, name, stage, version) {
  asking?.abort();
  asking = new AbortController();
  const wish = { stage, version: version ?? "", partition, name };
  const found = await call("patch", new URLSearchParams(Object.entries(wish).filter(([, value]) => value)), asking.signal);
  shown = { ...found, partition, key: `${partition}\n${name}` };
  id("details").hidden = false;
  document.body.classList.add("opened");
  if (found.filename) drawCrop(); else drawPatch();
}

export function closeDetails() {
  asking?.abort();
  shown = null;
  id("details").hidden = true;
  id("details").replaceChildren();
  document.body.classList.remove("opened");
}

function copyButton(text, what = "Copy") {
  const button = el("button", { type: "button", class: "copy", text: what });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy by hand";
    }
    setTimeout(() => { button.textContent = what; }, 1500);
  });
  return button;
}

function code(title, text) {
  return el("div", { class: "code" }, el("div", {}, el("span", { text: title }), copyButton(text)), el("pre", { text }));
}

function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return el("dl", {}, ...known.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", {}, value instanceof Node ? value : String(value))]));
}

function part(title, ...children) { return el("section", {}, el("h3", { text: title }), ...children); }

function head(title, kind) {
  const link = location.href;
  return el("div", { class: "head" }, el("div", {}, el("p", { class: "kind", text: kind }), el("h2", { text: title })),
    el("div", { class: "buttons" }, copyButton(title, "Copy name"), copyButton(link, "Copy link"),
      el("button", { type: "button", id: "close", "aria-label": "Close the details", text: "×", onclick: () => visit(null) })));
}

function picture(row, alt) {
  const image = el("img", { class: "exact", alt, src: imageOf({ ...row, exact: true, stage: shown.stage }) });
  image.addEventListener("error", () => image.replaceWith(el("p", { class: "lost", text: "The picture cannot be read; the data it was cut from may be gone." })));
  return image;
}

function link(url) {
  return /^https?:\/\//.test(url) ? el("a", { href: url, target: "_blank", rel: "noopener noreferrer", text: url }) : el("span", { text: url });
}

function releases() {
  if (!shown.releases.length) return el("p", { class: "quiet", text: "There is no release yet." });
  return el("ul", { class: "releases" }, ...shown.releases.map((release) => el("li", { class: release.is_in ? "in" : "out" },
    el("b", { text: release.version }), release.is_in ? " holds it" : ` does not: ${release.why || "not among its images"}`)));
}

function drawPatch() {
  const { place, volume, duplicates, score, facts: said } = shown;
  const step = volume?.step_nm;
  const axes = [0, 1, 2].filter((axis) => axis !== Math.max(place.axis, 0));
  const sides = [place.y1 - place.y0, place.x1 - place.x0];
  const size = step ? axes.map((axis, number) => (sides[number] * step[axis]) / 1000) : null;
  const fate = duplicates.distance !== null ? "duplicate" : score?.outcome || (duplicates.num !== null ? "undecided" : "");
  const line = facts([
    ["Dataset", shown.dataset],
    ["Volume", place.volume],
    ["Plane", place.axis < 0 ? "2D image" : `${place.plane}, slice ${place.index}`],
    ["Rows (y)", `${place.y0} – ${place.y1}`],
    ["Columns (x)", `${place.x0} – ${place.x1}`],
    ["Field", size ? `${size[0].toFixed(2)} × ${size[1].toFixed(2)} µm` : ""],
    ["Fate", fate ? el("span", { class: `fate ${fate.split(" ")[0]}`, text: FATES[fate] ?? fate }) : ""],
    ["dHash", el("code", { text: shown.dhash })],
  ]);
  const parts = [
    head(shown.name, `patch of ${shown.dataset}`),
    el("div", { class: "top" }, picture({ partition: shown.dataset, name: shown.name, v: shown.v, ...rowPlace() }, `patch ${shown.name}`), el("div", {}, line, score ? drawScore(score) : "")),
  ];
  if (volume) parts.push(part("Where it lies", el("div", { id: "slice" })));
  if (duplicates.num !== null) parts.push(drawDuplicates());
  parts.push(part("Releases", releases()));
  parts.push(part("Licence and citation", facts([["Licence", said.licence], ["Cite", said.citation], ["Organism", said.organism], ["Tissue", said.tissue], ["Technique", said.technique],
    ["Source", said.source_url ? link(said.source_url) : ""]])));
  parts.push(drawLinks());
  id("details").replaceChildren(...parts);
  id("details").scrollTop = 0;
  if (volume) {
    view = { index: place.index, y: Math.floor((place.y0 + place.y1) / 2), x: Math.floor((place.x0 + place.x1) / 2) };
    drawSlice();
  }
}

function rowPlace() { return shown.row_group === undefined ? {} : { part: shown.part, row_group: shown.row_group }; }

function drawScore(score) {
  const W = 220;
  const bar = svg("svg", { viewBox: `0 0 ${W} 22`, class: "score", role: "img", "aria-label": `score ${score.informative.toFixed(3)}` },
    svg("rect", { x: 0, y: 7, width: W, height: 8, rx: 4, class: "track" }),
    svg("rect", { x: 0, y: 7, width: Math.max(W * score.informative, 2), height: 8, rx: 4, class: "value" }));
  if (score.threshold !== null) bar.append(svg("line", { x1: W * score.threshold, x2: W * score.threshold, y1: 2, y2: 20 }));
  const told = score.of === shown.name ? "" : " (of its exemplar)";
  const limit = score.threshold !== null ? `; kept above ${Number(score.threshold.toFixed(4))}` : "";
  return el("div", { class: "scored" }, el("p", {}, "Informative score ", el("b", { text: score.informative.toFixed(3) }), `${told}${limit}`), bar);
}

function drawDuplicates() {
  const { exemplar, num, members, distance } = shown.duplicates;
  const isExemplar = exemplar === shown.name;
  const card = (name, text, isHere) => {
    const image = el("img", { alt: "", loading: "lazy", src: imageOf({ stage: "raw", version: "", partition: shown.dataset, name }) });
    return el("button", { type: "button", class: `small ${isHere ? "here" : ""}`, title: name, "aria-label": `${text}: ${name}`, onclick: () => visit({ partition: shown.dataset, name, stage: "raw" }) }, image, el("span", { text }));
  };
  const cards = [card(exemplar, "exemplar", isExemplar), ...members.map((member) => card(member.name, `${member.distance} bits`, member.name === shown.name))];
  const told = isExemplar ? (num ? `This exemplar stands for ${many(num)} more ${num === 1 ? "patch that looks" : "patches that look"} like it.` : "An exemplar; no other patch looks like it.")
    : `Dropped: it differs in ${distance} of 64 bits from the exemplar that stands for it and ${many(num - 1)} more.`;
  const rest = num > members.length ? el("p", { class: "quiet", text: `The ${many(members.length)} nearest of ${many(num)} are shown.` }) : "";
  return part("Duplicates", el("p", { text: told }), num ? el("div", { class: "strip" }, ...cards) : "", rest);
}

function drawLinks() {
  const { volume, folder, dataset } = shown;
  const children = [];
  if (volume?.links) {
    const { neuroglancer, napari, python, url } = volume.links;
    children.push(neuroglancer
      ? el("p", {}, el("a", { class: "button", href: neuroglancer, target: "_blank", rel: "noopener noreferrer", text: "Open in neuroglancer ↗" }), el("span", { class: "quiet", text: " at this patch" }))
      : el("p", { class: "quiet" }, "For a link to neuroglancer, which reads the volume through this page's port, start ", el("code", { text: "cem-assets explore --neuroglancer" }), "."));
    children.push(code("napari, at this patch (Python)", python), code("napari, from a shell", napari), code("The volume, OME-Zarr", url));
  }
  children.push(code("The table, Parquet", folder), code("The rows in Python", `from cem_assets import readers\npatches = readers.read_patches(${JSON.stringify(dataset)}, ${JSON.stringify(shown.stage === "release" ? "filtered" : shown.stage)})`));
  return part("Open elsewhere", ...children);
}

function corner(side, centre) {
  const length = Math.min(side, MAX_SLICE);
  return [Math.min(Math.max(centre - Math.floor(length / 2), 0), side - length), length];
}

export function stepSlice(by) {
  if (!shown?.volume || !view) return;
  const depth = shown.place.axis < 0 ? 1 : shown.volume.shape[shown.place.axis];
  view.index = Math.min(Math.max(view.index + by, 0), depth - 1);
  drawSlice();
}

export const exemplarOf = () => (shown?.duplicates?.exemplar && shown.duplicates.exemplar !== shown.name ? { partition: shown.dataset, name: shown.duplicates.exemplar, stage: "raw" } : null);

function drawSlice() {
  const box = id("slice");
  const { place, volume } = shown;
  const axis = Math.max(place.axis, 0);
  const [height, width] = volume.shape.filter((_, number) => number !== axis);
  const depth = place.axis < 0 ? 1 : volume.shape[axis];
  const [top, tall] = corner(height, view.y);
  const [left, wide] = corner(width, view.x);
  const wish = new URLSearchParams({ dataset: shown.dataset, volume: place.volume, axis: place.axis, index: view.index, y: view.y, x: view.x });
  let frame = box.querySelector(".frame");
  if (!frame) { // made once, so that pictures replace one another without a flicker
    frame = el("div", { class: "frame" }, el("img", { alt: "slice of the volume" }), svg("svg", { class: "boxes" }));
    const slider = el("input", { type: "range", min: "0", max: String(depth - 1), step: "1", "aria-label": "Slice" });
    slider.addEventListener("input", () => { view.index = Number(slider.value); drawSlice(); });
    const back = el("button", { type: "button", text: "back to the patch", onclick: () => { view = { index: place.index, y: Math.floor((place.y0 + place.y1) / 2), x: Math.floor((place.x0 + place.x1) / 2) }; drawSlice(); } });
    const mini = svg("svg", { class: "mini", role: "img", "aria-label": "the whole plane; click to look elsewhere" });
    mini.addEventListener("click", (event) => {
      const area = mini.getBoundingClientRect();
      view.y = Math.round(((event.clientY - area.top) / area.height) * height);
      view.x = Math.round(((event.clientX - area.left) / area.width) * width);
      drawSlice();
    });
    box.replaceChildren(frame, el("div", { class: "below" }, mini, el("div", {}, el("p", { class: "where" }), depth > 1 ? slider : "", depth > 1 ? back : "")));
  }
  const image = frame.querySelector("img");
  image.src = `slice?${wish}`;
  image.width = wide;
  image.height = tall;
  const boxes = frame.querySelector("svg");
  boxes.setAttribute("viewBox", `${left} ${top} ${wide} ${tall}`);
  const own = { x: place.x0, y: place.y0, width: place.x1 - place.x0, height: place.y1 - place.y0 };
  boxes.replaceChildren(svg("rect", { ...own, class: view.index === place.index ? "patch" : "patch away", "vector-effect": "non-scaling-stroke" }));
  const mini = box.querySelector(".mini");
  mini.setAttribute("viewBox", `0 0 ${width} ${height}`);
  mini.classList.toggle("whole", tall === height && wide === width);
  mini.replaceChildren(svg("rect", { x: 0, y: 0, width, height, class: "plane" }), svg("rect", { x: left, y: top, width: wide, height: tall, class: "window" }), svg("rect", { ...own, class: "patch" }));
  const slider = box.querySelector("input");
  if (slider) slider.value = String(view.index);
  const plane = place.axis < 0 ? "Image" : `${PLANES[place.axis]} slice ${view.index} of 0 – ${depth - 1}`;
  const part = tall === height && wide === width ? "" : `; rows ${top} – ${top + tall}, columns ${left} – ${left + wide}`;
  box.querySelector(".where").textContent = `${plane}, ${many(height)} × ${many(width)} px${part}`;
}

function drawCrop() {
  const { row, facts: said, filename } = shown;
  const names = Object.keys(row).filter((name) => !["label", "category", "filename", "path", "pixel_sha256", "licence"].includes(name));
  const words = (name) => name.replaceAll("_", " ");
  id("details").replaceChildren(
    head(filename, `crop of the label ${row.label}`),
    el("div", { class: "top" }, picture({ partition: shown.partition, name: filename, v: shown.v, part: shown.part, row_group: shown.row_group }, `crop ${filename}`),
      el("div", {}, facts([["Label", row.label], ["Category", words(row.category)], ["Source", row.source], ["Scale", row.scaling], ["Split", row.split], ["Size", `${row.height} × ${row.width} px`]]))),
    part("What is known of it", facts(names.filter((name) => !["source", "scaling", "split", "height", "width"].includes(name)).map((name) => [words(name), String(row[name])]))),
    part("Releases", releases()),
    part("Licence and citation", facts([["Licence", row.licence || said.licence], ["Source", said.title], ["Cite", said.citation]])),
    part("Open elsewhere", code("The table, Parquet", shown.folder)),
  );
  id("details").scrollTop = 0;
}

export const isHere = (partition, name) => shown !== null && shown.partition === partition && (shown.name ?? shown.filename) === name && isCyto() === Boolean(shown.filename) && Boolean(state.stage);
