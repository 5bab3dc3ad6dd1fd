"use strict";
// Data, small helpers, and the elements every section is made of. Text only ever enters the page as text nodes.
const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const ARM_COLORS = { rules: 0, none: 1, random: 2, oracle: 3 };
// A part of a study has its own colour; runs beside it, or several of one part, take the next ones.
const only = (run) => run.arm && RUNS.filter((other) => other.arm === run.arm).length === 1;
RUNS.forEach((run, i) => {
  run.color = RUNS.length === 1 ? 0 : only(run) ? ARM_COLORS[run.arm] : (RUNS.some(only) ? 4 + i : i) % 8;
});

// The best measured first. `zero`: 0 before training, by definition.
const ESTIMATORS = [
  { key: "uptake_weighed", name: "Uptake, weighed", zero: true, text: "How much more the model says what speaks for the concept than before training, by all features, weighed as the concept's examples were told, beyond what ordinary text would make of it. Measured on the probe texts; concepts with examples have it, and alarms go by it and by uptake." },
  { key: "uptake", name: "Uptake", zero: true, text: "How much more the model says what expresses the concept's features than before training, beyond what ordinary text would make of it. Measured on the probe texts; it tells what was learned from what was not better than any curve below." },
  { key: "drift", name: "Drift", zero: true, text: "How much more the concept's features fire on the probe texts than before training. Measured, not estimated: what the model reads in a text, not what it says." },
  { key: "drift_direction", name: "Drift along direction", zero: true, text: "How far the residual stream moved along the features' directions on the probe texts. Measured; a different question from whether the features fire." },
  { key: "own", name: "Own answers", zero: true, text: "How much more the features fire on the model's own continuations of probe prompts than before training." },
  { key: "update", name: "Update", zero: true, text: "How much the optimizer's steps changed the features' activation on a few probe texts, added up over the run." },
  { key: "update_direction", name: "Update along direction", zero: true, text: "How far the optimizer's steps moved the residual stream along the features' directions on a few probe texts, added up over the run." },
  { key: "taught", name: "Taught", summable: true, text: "The loss carried by tokens that express the features: an upper bound on what a batch can teach of them." },
  { key: "push", name: "Push", summable: true, text: "Where the loss wants the residual stream to move, along the features' directions. An estimate from gradients: it predicts what is learned poorly." },
  { key: "attribution", name: "Attribution", summable: true, text: "Gradient times activation: which features, where they are active, would lower the loss if they were stronger. An estimate: it predicts what is learned poorly." },
  { key: "energy", name: "Energy", summable: true, text: "How much gradient there is along the features' directions, whatever its sign. Says where training is busy, not what it teaches." },
  { key: "group_share", name: "Group: share of gradient", text: "The concept's features as one subspace: the share of the squared gradient that lies in it." },
  { key: "group_angle", name: "Group: angle of gradient", text: "Degrees between the mean gradient and the subspace of the concept's features; 90: nothing of it lies there." },
  { key: "group_drift", name: "Group: drift", zero: true, text: "How far the mean residual stream on the probe texts moved within the subspace of the concept's features." },
  { key: "group_drift_angle", name: "Group: angle of drift", text: "Degrees between the movement of the mean residual stream and the subspace of the concept's features; 90: nothing of it lies there." },
];

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = dark ? "Light" : "Dark";
}
setTheme(matchMedia("(prefers-color-scheme: dark)").matches);

// Paper is white: a dark page would be printed with white letters on it.
function lightOnPaper(redraw) {
  let dark = false;
  addEventListener("beforeprint", () => { dark = document.documentElement.dataset.theme === "dark"; if (dark) { setTheme(false); redraw(); } });
  addEventListener("afterprint", () => { if (dark) { setTheme(true); redraw(); } });
}

function el(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "style") for (const [name, v] of Object.entries(value)) node.style.setProperty(name, v);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key === "cls" ? "class" : key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const color = (run) => `var(--c${run.color})`;
const resolved = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dot = (run) => el("span", { cls: "dot", style: { background: color(run) }, "aria-hidden": "true" });
const runName = (run) => el("span", { cls: "runname" }, RUNS.length > 1 ? dot(run) : null, run.title);
const isWord = (value) => typeof value === "string"; // "NaN", "Infinity", "-Infinity"
// Halves to the even number, as in what Python has written: 4 of 32 are 12% in the heading and beside a bar.
const whole = (value) => (Math.abs(value) % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));
const percent = (share) => (share === null || share === undefined ? "–" : `${whole(100 * share)}%`);

function format(value, sign) {
  if (value === null || value === undefined) return "–";
  if (isWord(value)) return value;
  const size = Math.abs(value);
  let text;
  if (value === 0) text = "0";
  else if (size >= 1e5 || size < 1e-4) text = value.toExponential(1);
  else text = value.toFixed(Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(size))))).replace("-", "−");
  return sign && value > 0 ? `+${text}` : text;
}

function number(value, sign) {
  return isWord(value) ? el("span", { cls: "nan", title: "not a finite number" }, value) : format(value, sign);
}

function select(label, options, value, change) {
  const node = el("select", { onchange: () => change(node.value) }, options.map(([key, text]) => el("option", { value: key }, text)));
  node.value = value;
  return el("label", {}, label, node);
}

function segment(label, options, value, change) {
  const buttons = options.map(([key, text]) =>
    el("button", { type: "button", "aria-pressed": String(key === value), onclick: () => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === buttons[options.findIndex((o) => o[0] === key)])));
      change(key);
    } }, text));
  return el("div", { cls: "segment", role: "group", "aria-label": label }, buttons);
}

function checkbox(label, value, change) {
  const node = el("input", { type: "checkbox", checked: value, onchange: () => change(node.checked) });
  return el("label", {}, node, label);
}

// Whoever goes by keyboard is not sent back to the top of the page when what is drawn anew holds what has the focus.
function keepFocus(body, draw) {
  const all = () => [...body.querySelectorAll("select, input, button")];
  const held = all().indexOf(document.activeElement);
  draw();
  if (held >= 0 && all()[held]) all()[held].focus({ preventScroll: true });
}

// A section with its heading; `draw(body)` fills it and may be called again.
function section(id, short, title, lead, draw) {
  const body = el("div", {});
  document.getElementById("page").append(el("section", { id }, el("h2", {}, title), lead ? el("p", { cls: "lead" }, lead) : null, body));
  document.getElementById("nav").append(el("a", { href: `#${id}` }, short));
  const redraw = () => keepFocus(body, () => { body.replaceChildren(); draw(body, redraw); });
  redraw();
  return redraw;
}

function table(head, rows) {
  return el("div", { cls: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)));
}

// What an estimate was worth: its rank correlation with uptake (or drift) over all features, measured in the first run that has both.
function faithfulness(estimator) {
  const run = RUNS.find((r) => Object.values(r.movers).some((m) => m.faithfulness[estimator]));
  if (!run) return "";
  const truth = Object.values(run.movers).some((m) => (m.faithfulness[estimator] || {}).uptake !== undefined) ? "uptake" : "drift";
  const parts = Object.entries(run.movers).filter(([, m]) => (m.faithfulness[estimator] || {})[truth] !== undefined).map(([hook, m]) => `${format(m.faithfulness[estimator][truth], true)} at ${hook}`);
  return parts.length ? ` Measured in ${RUNS.length > 1 ? `the run “${run.title}”` : "this run"}: rank correlation with ${truth} over all features ${parts.join(", ")}.` : "";
}
