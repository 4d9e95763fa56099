// Glue of the explorer: bokeh runs it at first, whenever a control changes, and when a point is clicked.
// source: the points drawn; all: coordinates and colour codes of every space; near: neighbours, `width` of each kind.
const { picture: pictures, captions } = store.data;
const name = spaces[space.active], n = pictures.length, d = source.data;
if (cb_obj.id === words.id && source.selected.indices.length) {
  source.selected.indices = []; // a new search leaves the chosen point; this code then runs again
  return;
}
const safe = (text) => { const e = document.createElement("i"); e.textContent = text; return e.innerHTML; };
const chosen = source.selected.indices.length ? source.selected.indices[0] : -1;
const asked = (words.value_input || "").toLowerCase().split(/[^\p{L}\p{N}]+/u).filter((word) => word);
const tells = (caption) => asked.every((word) => ` ${caption} `.includes(` ${word}`));
const found = [];
if (asked.length)
  for (let p = 0; p < 2 * n; p++)
    if (p < n ? captions[p].some(tells) : tells(captions[p - n][0])) found.push(p);

// a click on a picture or caption of the panel chooses that point
if (!panel.tags.length) {
  panel.tags = ["listening"];
  document.addEventListener("click", (event) => {
    const hit = event.composedPath().find((node) => node.dataset && node.dataset.owner === source.id);
    if (hit) source.selected.indices = [Number(hit.dataset.point)];
  });
}

const codes = all.data[`${mode.value}|${name}`];
d.color = Array.from(codes, (code) => palettes[mode.value][code]);
legend.text = legends[mode.value];

const neighbours = (p, kind, where) =>
  Array.from({ length: width }, (_, i) => near.data[`${kind}|${where}`][p * width + i]).filter((q) => q >= 0);
const around = chosen < 0 ? [] : ["pictures", "captions"].flatMap((kind) => neighbours(chosen, kind, name).slice(0, 5));
const ringed = chosen < 0 ? found : [chosen, ...around];

const draw = () => {
  const at = (axis, points) => points.map((p) => d[axis][p]);
  rings.data = { x: at("x", ringed), y: at("y", ringed), point: ringed,
                 size: ringed.map((p) => (p === chosen ? 18 : 12)) };
  lines.data = { x0: around.map(() => d.x[chosen]), y0: around.map(() => d.y[chosen]),
                 x1: at("x", around), y1: at("y", around) };
  source.change.emit();
};

// the panel: the point and its neighbours in every space, or what the words found
const picture = (p, mark, size) =>
  `<img src="${pictures[p % n]}" width="${size}" height="${size}" data-owner="${source.id}" data-point="${p}"
    title="${safe(captions[p % n][0]).replaceAll('"', "&quot;")}"
    style="cursor:pointer;margin:2px;border:3px ${mark ? "solid #000" : "solid #ddd"}">`;
const caption = (p, mark) =>
  `<div data-owner="${source.id}" data-point="${p}" style="cursor:pointer${mark ? ";font-weight:bold" : ""}">` +
  `${mark ? "&#10003; " : "&#9650; "}${safe(captions[p - n][0])}</div>`;
if (chosen >= 0) {
  const own = chosen % n;
  const facts = Object.entries(groups).map(([kind, labels]) => `${safe(kind)}: ${safe(labels[own])}`);
  const parts = [`<div style="overflow:hidden"><img src="${pictures[own]}" width="96" style="float:left;margin-right:10px">` +
    `<b>${chosen < n ? "This picture" : "This caption"}</b><br>` +
    captions[own].map((text, i) => (i === 0 && chosen >= n ? `<b>${safe(text)}</b>` : safe(text))).join("<br>") +
    `<br><i>${facts.join(", ")}</i></div>`];
  for (const where of spaces) {
    const mine = (q) => q % n === own;
    const seen = neighbours(chosen, "pictures", where).slice(0, 8), told = neighbours(chosen, "captions", where).slice(0, 5);
    parts.push(`<h3 style="margin:10px 0 2px">${safe(where)}${where === name ? " (on the map)" : ""}</h3>`);
    parts.push(seen.map((q) => picture(q, mine(q), 44)).join("") + told.map((q) => caption(q, mine(q))).join(""));
    if (!common.includes(where)) parts.push("<div><i>no common space: only its own modality</i></div>");
  }
  parts.push("<p>A black frame or &#10003; is the partner. Lines lead to the five nearest of each kind.</p>");
  panel.text = parts.join("");
} else if (asked.length) {
  const seen = found.filter((p) => p < n), told = found.filter((p) => p >= n);
  panel.text = `<p><b>${seen.length} pictures, ${told.length} captions</b> with these words are ringed; click one.</p>` +
    seen.slice(0, 24).map((p) => picture(p, false, 44)).join("") + told.slice(0, 16).map((p) => caption(p, false)).join("");
} else panel.text = help + Array.from({ length: Math.min(n, 40) }, (_, i) => picture(i, false, 44)).join("");

// move to the space asked for
const target = { x: all.data[`x|${name}`], y: all.data[`y|${name}`] };
const ticket = (source.tags[0] || 0) + 1;
source.tags = [ticket];
const begin = { x: Array.from(d.x), y: Array.from(d.y) };
const still = !begin.x.some((x, i) => x !== target.x[i]);
const length = still || window.matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 900;
const started = performance.now();
const step = (now) => {
  if (source.tags[0] !== ticket) return; // a later change has taken over
  const t = length ? Math.min(1, Math.max(0, now - started) / length) : 1;
  const eased = t * t * (3 - 2 * t);
  for (const axis of ["x", "y"])
    d[axis] = t === 1 ? Array.from(target[axis]) : begin[axis].map((x, i) => x + eased * (target[axis][i] - x));
  draw();
  if (t < 1) requestAnimationFrame(step);
};
length ? requestAnimationFrame(step) : step(started);
