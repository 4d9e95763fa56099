"use strict";
// Point p < n is picture p, point n + p its caption; `at` holds the coordinates drawn now, then the view of the map.
const all = JSON.parse(document.getElementById("data").textContent);
const el = (id) => document.getElementById(id);
const [canvas, tip, panel] = [document.querySelector("canvas"), el("tip"), el("panel")];
const state = { chosen: -1, hovered: -1, matches: [], scale: 1, dx: 0, dy: 0, move: 0 };
const palette = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8A7A00"], grey = "#c8c8c8"; // Okabe and Ito
const steps = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"]; // cividis
let data, n, space, at, layouts, modes, moved;

const safe = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const words = (text) => text.toLowerCase().split(/[^\p{L}\p{M}\p{N}]+/u).filter(Boolean);
const shownOf = (limit, count, what) => `${Math.min(limit, count)} of ${count} ${what} shown`;

// ---- colour modes: a code for each point in each space, a colour and a name for each code

const kindOf = (p) => (p < n ? "pictures" : "captions");
const partner = (p) => (p < n ? p + n : p - n);
const forAll = (make) => Array.from({ length: 2 * n }, (_, p) => make(p));

function shared(p, where, others) { // percentage of the nearest neighbours of its modality that are among `others`
  const near = neighbours(p, kindOf(p), where, data.width), reference = new Set(others);
  return 100 * near.filter((q) => reference.has(q)).length / near.length;
}

function stepped(shares) { // the few points above the 98th percentile get the last colour
  const common = Object.entries(shares).filter(([where]) => where !== data.unimodal).flatMap(([, values]) => values).sort((a, b) => a - b);
  const top = Math.max(1, Math.round(common[Math.floor(0.98 * (common.length - 1))] / 10));
  const beyond = Object.values(shares).some((values) => values.some((x) => Math.round(x / 10) > top));
  const names = [...Array(top + 1).keys()].map((i) => `${10 * i} %${i === top && beyond ? " or more" : ""}`);
  const codes = Object.entries(shares).map(([where, values]) => [where, values.map((x) => Math.min(top, Math.round(x / 10)))]);
  return { codes: Object.fromEntries(codes), names, palette: names.map((_, i) => steps[Math.round(i / top * (steps.length - 1))]) };
}

function colourings() {
  const spaces = Object.keys(data.xy), same = (codes) => Object.fromEntries(spaces.map((where) => [where, codes]));
  const bySpace = (make) => Object.fromEntries(spaces.map((where) => [where, forAll((p) => make(p, where))]));
  const colours = { modality: { codes: same(forAll((p) => Number(p >= n))), palette, names: ["picture", "caption"] } };
  for (const [kind, labels] of Object.entries(data.groups)) {
    const counts = new Map();
    for (const label of labels) counts.set(label, (counts.get(label) || 0) + 1);
    const ranked = [...counts].sort((a, b) => b[1] - a[1]).map(([label]) => label);
    const kept = ranked.slice(0, ranked.length === palette.length + 1 ? ranked.length : palette.length).sort();
    const names = ranked.length > kept.length ? [...kept, "other"] : kept;
    const code = (p) => { const i = kept.indexOf(labels[p % n]); return i < 0 ? kept.length : i; };
    colours[kind] = { codes: same(forAll(code)), palette: [...palette, grey], names };
  }
  const hit = (p, where) => (where === data.unimodal ? 2 : Number(!neighbours(p, kindOf(partner(p)), where, 10).includes(partner(p))));
  colours["hit or miss"] = { codes: bySpace(hit), palette: [palette[0], palette[1], grey],
    names: ["hit: partner among the first ten", "miss", "no common space"] };
  colours["neighbours shared with the teachers"] = stepped(bySpace((p, where) => shared(p, where, neighbours(p, kindOf(p), data.unimodal, data.width))));
  if (data.truth.length) colours["neighbours shared with the truth"] = stepped(bySpace((p, where) => shared(p, where, data.truth[p])));
  moved = forAll((p) => 100 - shared(p, "RVLR", neighbours(p, kindOf(p), "baseline", data.width)));
  colours.moved = stepped(same(moved));
  return colours;
}

// ---- the map

function viewOf(xy) { // centre and half extent along x and y
  const ends = [0, 1].map((axis) => xy.filter((_, i) => i % 2 === axis)).map((values) => [Math.min(...values), Math.max(...values)]);
  return [...ends.map(([low, high]) => (low + high) / 2), ...ends.map(([low, high]) => Math.max((high - low) / 2, 1e-9))];
}

function place(p) {
  const [x, y, wide, high] = at.slice(4 * n), { clientWidth: width, clientHeight: height } = canvas;
  const unit = Math.min(width / wide, height / high) / 2 / 1.06 * state.scale;
  return [width / 2 + state.dx + unit * (at[2 * p] - x), height / 2 + state.dy - unit * (at[2 * p + 1] - y)];
}

function neighbours(p, kind, where, count) {
  const first = p * data.width;
  return data.near[where][kind].slice(first, first + Math.min(count, data.width)).filter((q) => q >= 0);
}

function mark(context, p, radius) {
  const [x, y] = place(p);
  context.beginPath();
  if (p < n) context.arc(x, y, radius, 0, 7);
  else {
    context.moveTo(x, y - 1.3 * radius);
    context.lineTo(x + 1.15 * radius, y + 0.8 * radius);
    context.lineTo(x - 1.15 * radius, y + 0.8 * radius);
    context.closePath();
  }
}

function draw() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio))
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const chosen = state.chosen;
  const around = chosen < 0 ? [] : ["pictures", "captions"].flatMap((kind) => neighbours(chosen, kind, space, 5));
  context.strokeStyle = "#555";
  context.lineWidth = 1;
  for (const q of around) {
    context.beginPath();
    context.moveTo(...place(chosen));
    context.lineTo(...place(q));
    context.stroke();
  }
  const mode = modes[el("mode").value], codes = mode.codes[space], radius = n < 700 ? 4.5 : 3.2;
  context.strokeStyle = "#fff";
  context.lineWidth = 0.5;
  for (let p = 0; p < 2 * n; p++) {
    context.fillStyle = mode.palette[codes[p]];
    mark(context, p, radius);
    context.fill();
    context.stroke();
  }
  context.strokeStyle = "#000";
  context.lineWidth = 2;
  const ringed = chosen < 0 ? state.matches : [chosen, ...around];
  for (const p of state.hovered < 0 ? ringed : [...ringed, state.hovered]) {
    mark(context, p, p === chosen ? 9 : 6);
    context.stroke();
  }
}

function moveTo(name) {
  const target = layouts[name], begin = at.slice(), move = ++state.move;
  const length = window.matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 900, started = performance.now();
  space = name;
  const step = (now) => {
    if (move !== state.move) return; // a later move has replaced this one
    const t = length ? Math.min(1, Math.max(0, now - started) / length) : 1, eased = t * t * (3 - 2 * t);
    for (let i = 0; i < at.length; i++) at[i] = t === 1 ? target[i] : begin[i] + eased * (target[i] - begin[i]);
    draw();
    if (t < 1) requestAnimationFrame(step);
  };
  step(started);
  for (const button of el("spaces").children) button.setAttribute("aria-pressed", button.textContent === name);
  legend();
  show();
}

function nearest(event) {
  const box = canvas.getBoundingClientRect();
  let best = -1, least = 12;
  for (let p = 0; p < 2 * n; p++) {
    const [x, y] = place(p), distance = Math.hypot(event.clientX - box.left - x, event.clientY - box.top - y);
    if (distance < least) [best, least] = [p, distance];
  }
  return best;
}

function hover(event) {
  const p = event ? nearest(event) : -1;
  if (p !== state.hovered) {
    state.hovered = p;
    draw();
  }
  tip.style.display = p < 0 ? "none" : "block";
  if (p < 0) return;
  tip.innerHTML = `<img alt="" src="${data.pictures[p % n]}">${p < n ? "picture" : "caption"}: ${safe(data.captions[p % n][0])}`;
  const gap = 14, { offsetWidth: width, offsetHeight: height } = tip; // kept inside the window
  const left = event.clientX + gap + width > window.innerWidth ? event.clientX - gap - width : event.clientX + gap;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${Math.max(0, Math.min(event.clientY + gap, window.innerHeight - height - 4))}px`;
}

// ---- the panel

const picture = (p, isPartner) =>
  `<img data-point="${p}" alt="${safe(data.captions[p % n][0])}" title="${safe(data.captions[p % n][0])}"` +
  ` class="${isPartner ? "partner" : ""}" src="${data.pictures[p % n]}">`;
const caption = (p, isPartner) =>
  `<p class="caption${isPartner ? " partner" : ""}" data-point="${p}">${isPartner ? "✓" : "▲"} ${safe(data.captions[p - n][0])}</p>`;

function listed(points, mostPictures, mostCaptions) {
  const [pictures, captions] = [points.filter((p) => p < n), points.filter((p) => p >= n)];
  return `<h2>${shownOf(mostPictures, pictures.length, "pictures")}</h2>${pictures.slice(0, mostPictures).map((p) => picture(p)).join("")}` +
    `<h2>${shownOf(mostCaptions, captions.length, "captions")}</h2>${captions.slice(0, mostCaptions).map((p) => caption(p)).join("")}`;
}

function show() {
  const chosen = state.chosen, mode = el("mode").value;
  if (chosen >= 0) {
    const item = chosen % n, isPartner = (q) => q % n === item;
    const facts = Object.entries(data.groups).map(([kind, labels]) => `${safe(kind)}: ${safe(labels[item])}`);
    const parts = [`<img class="large" alt="" src="${data.pictures[item]}"><b>${chosen < n ? "This picture" : "This caption"}</b>` +
      data.captions[item].map((text, i) => `<p>${i === 0 && chosen >= n ? `<b>${safe(text)}</b>` : safe(text)}</p>`).join("") +
      `<p><i>${facts.join(", ")}</i></p><p>${Math.round(moved[chosen])} % of its neighbours differ between baseline and RVLR.</p><div class="clear"></div>`];
    for (const where of Object.keys(data.xy)) {
      parts.push(`<h2>${safe(where)}${where === space ? " (on the map)" : ""}</h2>` +
        neighbours(chosen, "pictures", where, 8).map((q) => picture(q, isPartner(q))).join("") +
        neighbours(chosen, "captions", where, 5).map((q) => caption(q, isPartner(q))).join(""));
      if (where === data.unimodal) parts.push("<p><i>No common space: neighbours of the same modality only.</i></p>");
    }
    panel.innerHTML = parts.join("") + "<p>A black frame or ✓ marks the partner. Lines lead to the five nearest pictures and captions.</p>";
  } else if (el("words").value.trim()) {
    panel.innerHTML = state.matches.length ? "<p>Points with these words are ringed; click one.</p>" + listed(state.matches, 24, 15)
      : "<p>No caption has all of these words.</p>";
  } else if (mode === "moved") {
    const ranked = [...Array(2 * n).keys()].sort((a, b) => moved[b] - moved[a]);
    panel.innerHTML = "<p><b>Items that moved</b>, sorted by how much their neighbours differ between baseline and RVLR.</p>" + listed(ranked, 24, 15);
  } else
    panel.innerHTML = "<p><b>Click a point</b> to see its neighbours in every space, <b>choose a space</b> to watch the points " +
      "move, or <b>search</b> captions by words. Drag to pan the map, scroll to zoom.</p><p>Or start with one of these:</p>" +
      listed([...Array(n).keys()], 39, 0).split("<h2>0 of")[0];
}

function choose(p) {
  state.chosen = p;
  panel.scrollTop = 0;
  show();
  draw();
}

function search() {
  const query = words(el("words").value);
  const has = (text) => query.every((prefix) => words(text).some((word) => word.startsWith(prefix)));
  state.matches = query.length ? [...Array(2 * n).keys()].filter((p) => (p < n ? data.captions[p].some(has) : has(data.captions[p - n][0]))) : [];
  choose(-1);
}

function legend() {
  const mode = modes[el("mode").value], plain = mode === modes.modality, counts = mode.names.map(() => 0);
  for (const code of mode.codes[space]) counts[code] += 1;
  el("legend").innerHTML = ["● picture", "▲ caption"].map((kind, i) =>
    `<span><b style="color:${plain ? mode.palette[i] : "inherit"}">${kind[0]}</b>${kind.slice(1)}</span>`).join("") +
    (plain ? [] : mode.names).map((name, i) => `<span><i style="background:${mode.palette[i]}"></i>${safe(name)} (${counts[i]})</span>`).join("");
}

function open(name) {
  data = all[name];
  n = data.pictures.length;
  modes = colourings();
  const spaces = Object.keys(data.xy);
  layouts = Object.fromEntries(Object.entries(data.xy).map(([name, xy]) => [name, [...xy, ...viewOf(xy)]]));
  at = layouts[spaces.at(-1)].slice();
  Object.assign(state, { chosen: -1, hovered: -1, matches: [], scale: 1, dx: 0, dy: 0 });
  el("words").value = "";
  el("words").placeholder = `such as ${words(data.captions[0][0]).slice(-2).join(" ")}`;
  el("mode").innerHTML = Object.keys(modes).map((mode) => `<option>${safe(mode)}</option>`).join("");
  el("spaces").innerHTML = spaces.map((where) => `<button>${safe(where)}</button>`).join("");
  el("notes").textContent = data.notes.join(" ");
  moveTo(spaces.at(-1));
}

// ---- interaction

let drag = null;
canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, far: 0 }; canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointermove", (event) => {
  if (!drag) return hover(event);
  state.dx += event.clientX - drag.x;
  state.dy += event.clientY - drag.y;
  drag = { x: event.clientX, y: event.clientY, far: drag.far + Math.hypot(event.clientX - drag.x, event.clientY - drag.y) };
  draw();
});
canvas.addEventListener("pointerup", (event) => { if (drag && drag.far < 5) choose(nearest(event)); drag = null; });
canvas.addEventListener("pointerleave", () => hover(null));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = canvas.getBoundingClientRect(), factor = Math.exp(-event.deltaY / 500);
  const [x, y] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  Object.assign(state, { scale: state.scale * factor, dx: x + (state.dx - x) * factor, dy: y + (state.dy - y) * factor });
  draw();
}, { passive: false });
panel.addEventListener("click", (event) => { const hit = event.target.closest("[data-point]"); if (hit) choose(Number(hit.dataset.point)); });
el("dataset").innerHTML = Object.keys(all).map((name) => `<option>${safe(name)}</option>`).join("");
el("dataset").addEventListener("change", (event) => open(event.target.value));
el("mode").addEventListener("change", () => { legend(); choose(state.chosen); });
el("words").addEventListener("input", search);
el("spaces").addEventListener("click", (event) => { if (event.target.matches("button")) moveTo(event.target.textContent); });
el("reset").addEventListener("click", () => { Object.assign(state, { scale: 1, dx: 0, dy: 0 }); draw(); });
new ResizeObserver(draw).observe(canvas);
open(Object.keys(all)[0]);
