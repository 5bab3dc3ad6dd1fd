// The text of one section of a report, without a browser: `node page_text.js DATA DRAW SCRIPT...`, DRAW the name of the section's function.
// Nodes hold their children and nothing else; the part of the last script that draws the whole page is left out.
const fs = require("fs"), vm = require("vm");
const [data, draw, ...scripts] = process.argv.slice(2);
const node = () => ({
  kids: [], value: "", dataset: {}, style: { setProperty() {} },
  append(...kids) { this.kids.push(...kids); },
  replaceChildren(...kids) { this.kids = kids; },
  addEventListener() {},
  setAttribute() {},
  get textContent() { return this.kids.map((kid) => (kid && kid.kids ? kid.textContent : String(kid))).join(""); },
  set textContent(text) { this.kids = [text]; },
});
const holder = node();
holder.textContent = fs.readFileSync(data, "utf8");
const document = { createElement: node, createElementNS: node, getElementById: (id) => (id === "data" ? holder : node()), documentElement: node() };
const context = vm.createContext({ document, matchMedia: () => ({ matches: false }), addEventListener() {}, body: node() });
const code = scripts.map((path) => fs.readFileSync(path, "utf8").split("const hasCurves")[0]);
vm.runInContext([...code, `${draw}(body, () => {});`].join("\n"), context);
console.log(context.body.textContent);
