// A minimal document for the page in argument 1; prints the value of the expression in argument 2.
const fs = require("fs"), text = fs.readFileSync(process.argv[2], "utf8");
const body = (tag) => text.match(new RegExp(`<script${tag}>([\\s\\S]*?)</script>`))[1];
const drawing = new Proxy({}, { get: () => () => {}, set: () => true });
const make = () => ({ listeners: {}, style: {}, dataset: {}, children: [], value: "", innerHTML: "", textContent: "",
  clientWidth: 800, clientHeight: 600, offsetWidth: 200, offsetHeight: 90, scrollTop: 0, getContext: () => drawing,
  getBoundingClientRect: () => ({ left: 0, top: 0, width: 800, height: 600 }), setPointerCapture: () => {},
  addEventListener(kind, does) { this.listeners[kind] = does; } });
const parts = {};
const part = (id) => (parts[id] ??= make());
part("data").textContent = body(' type="application/json" id="data"');
part("mode").value = "modality";
global.document = { getElementById: part, querySelector: () => part("canvas") };
global.window = { devicePixelRatio: 1, innerWidth: 900, innerHeight: 700, matchMedia: () => ({ matches: true }) };
global.ResizeObserver = class { observe() {} };
global.requestAnimationFrame = () => {};
const shown = "place, choose, moveTo, stepped, get modes() { return modes; }, get moved() { return moved; }";
(0, eval)(`${body("")}; globalThis.page = { ${shown} }`);
console.log(JSON.stringify(eval(process.argv[3])));
