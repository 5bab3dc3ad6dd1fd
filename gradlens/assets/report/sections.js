// The sections of the page, in order.
function rateBars(rows) {
  return el("div", { cls: "bars" }, rows.flatMap(({ name, rate, fill, goal }) => [
    el("div", { cls: "name" }, name),
    el("div", { cls: "track", role: "img", "aria-label": `${percent(rate.rate)}, interval ${percent(rate.low)} to ${percent(rate.high)}` },
      el("div", { cls: "fill", style: { width: `${100 * rate.rate}%`, background: fill } }),
      el("div", { cls: "whisker", style: { left: `${100 * rate.low}%`, width: `${100 * (rate.high - rate.low)}%` } }),
      goal === undefined ? null : el("div", { cls: "goal", style: { left: `${100 * goal}%` } })),
    el("div", { cls: "value" }, percent(rate.rate), el("small", {}, `${rate.hits} of ${rate.n}`)),
  ]));
}

const checkPill = (check) => el("span", { cls: `pill ${check.met === null ? "" : check.met ? "good" : "bad"}` }, check.met === null ? "no bar" : check.met ? "met" : "not met");

function verdictCard(verdict) {
  const items = verdict.checks.map((check) => el("li", {}, checkPill(check), el("span", {}, check.text)));
  if (verdict.kind === "nll") {
    const rows = Object.entries(verdict.values).filter(([, value]) => value !== null);
    const top = Math.max(...rows.map(([, value]) => value));
    return el("div", { cls: "card" }, el("h3", {}, `Loss on ${verdict.nll}, held out`), el("div", { cls: "bars" }, rows.flatMap(([arm, value]) => {
      const run = RUNS.find((r) => r.arm === arm);
      return [el("div", { cls: "name" }, dot(run), DATA.arms[arm]), el("div", { cls: "track" }, el("div", { cls: "fill", style: { width: `${100 * value / top}%`, background: color(run) } })),
        el("div", { cls: "value" }, value.toFixed(3))];
    })), el("ul", { cls: "verdict" }, items));
  }
  const before = RUNS.map((run) => ((run.rates[verdict.prompts] || {})[verdict.concept] || {}).before).find(Boolean);
  const rows = verdict.checks.map((check) => {
    const run = RUNS.find((r) => r.arm === check.arm);
    return { name: [dot(run), DATA.arms[check.arm]], rate: check, fill: color(run), goal: check.limit === null ? undefined : check.limit };
  });
  if (before) rows.unshift({ name: [el("span", { cls: "dot", style: { background: "var(--quiet)" } }), "before training"], rate: before, fill: "var(--quiet)" });
  return el("div", { cls: "card" }, el("h3", {}, `Answers to “${verdict.prompts}” prompts that show ${verdict.concept}`), rateBars(rows), el("ul", { cls: "verdict" }, items.filter((_, i) => verdict.checks[i].met !== null)));
}

function drawOutcome(body) {
  const judged = DATA.verdicts.map((v) => `${v.prompts}/${v.concept}`);
  const grid = el("div", { cls: "grid two" }, DATA.verdicts.map(verdictCard));
  const flat = []; // what nobody judged and no run changed: a table will do
  const pairs = [...new Map(RUNS.flatMap((run) => Object.entries(run.rates).flatMap(([prompts, concepts]) => Object.keys(concepts).map((concept) => [`${prompts}/${concept}`, { prompts, concept }])))).entries()];
  for (const [, { prompts, concept }] of pairs.filter(([key]) => !judged.includes(key))) {
    const of = RUNS.map((run) => [run, (run.rates[prompts] || {})[concept] || {}]);
    const befores = of.map(([, rate]) => rate.before).filter(Boolean), before = befores[0];
    const same = befores.every((rate) => rate.hits === before.hits && rate.n === before.n); // of another model, or other prompts of that name
    const changed = before && of.some(([, { before: from, after }]) => from && after && (after.low > from.high || after.high < from.low));
    if ((before && !changed) || grid.children.length >= 12) {
      flat.push([`${concept} in answers to “${prompts}”`, same ? before : null, ...of.map(([, rate]) => (same ? rate.after : rate))]);
      continue;
    }
    const rows = of.filter(([, rate]) => rate.after).map(([run, rate]) => ({ name: RUNS.length > 1 ? [dot(run), run.title] : "after training", rate: rate.after, fill: color(run) }));
    const began = (rate, whose) => ({ name: RUNS.length > 1 ? [el("span", { cls: "dot", style: { background: "var(--quiet)" } }), `before training${whose}`] : "before training", rate, fill: "var(--quiet)" });
    if (before) rows.unshift(...(same ? [began(before, "")] : of.filter(([, rate]) => rate.before).map(([run, rate]) => began(rate.before, `: ${run.title}`))));
    grid.append(el("div", { cls: "card" }, el("h3", {}, `Answers to “${prompts}” prompts that show ${concept}`), rateBars(rows)));
  }
  if (grid.children.length) body.append(grid);
  const names = () => [el("th", { cls: "num" }, "before"), ...RUNS.map((run) => el("th", { cls: "num" }, RUNS.length > 1 ? [dot(run), run.title] : "after"))];
  if (flat.length) body.append(el("div", { cls: "card", style: { "margin-top": "16px" } }, el("h3", {}, "Also counted in the answers"), table([el("th", {}, ""), ...names()],
    flat.map(([name, ...rates]) => el("tr", {}, el("td", {}, name), rates.map((rate) => el("td", { cls: "num" }, !rate ? "–" : rate.rate === undefined ? `${rate.before ? percent(rate.before.rate) : "–"} → ${rate.after ? percent(rate.after.rate) : "–"}` : [percent(rate.rate), el("span", { cls: "quiet" }, ` of ${rate.n}`)])))))));
  const sets = [...new Set(RUNS.flatMap((run) => Object.keys(run.nll)))];
  if (sets.length) {
    const befores = (name) => [...new Set(RUNS.map((run) => run.nll[name] && run.nll[name].before).filter((v) => v !== null && v !== undefined))];
    const cell = (run, name) => { const { before, after } = run.nll[name] || {}; return befores(name).length > 1 ? `${format(before)} → ${format(after)}` : format(after); };
    body.append(el("div", { cls: "card", style: { "margin-top": "16px" } }, el("h3", {}, "Held-out loss, nats per response token (lower is better)"), table([el("th", {}, ""), ...names()],
      sets.map((name) => el("tr", {}, el("td", {}, name, name === DATA.wanted ? el("span", { cls: "quiet" }, " (wanted)") : null), el("td", { cls: "num" }, befores(name).length > 1 ? "–" : format(befores(name)[0])),
        RUNS.map((run) => el("td", { cls: "num" }, cell(run, name))))))));
  }
  if (DATA.displaced.length) body.append(el("div", { cls: "card", style: { "margin-top": "16px" } },
    el("h3", {}, "What rises instead: features beside those that a rule holds down, change on the probe texts in percent of what these had"), el("ul", {}, DATA.displaced.map((line) => el("li", {}, line)))));
  const checkers = Object.entries(Object.assign({}, ...RUNS.map((run) => run.checkers)));
  const words = checkers.filter(([, c]) => c.false_alarm_rate !== null && c.false_alarm_rate !== undefined)
    .map(([name, c]) => `${name} is recognised by ${{ pattern: "patterns", command: "a program" }[c.kind] || "a word classifier"} with ${(100 * c.false_alarm_rate).toFixed(1)}% false alarms and ${percent(c.hit_rate)} hits on held-out texts like its examples${c.ordinary_rate === undefined || c.ordinary_rate === null ? "" : `, and is found in ${(100 * c.ordinary_rate).toFixed(1)}% of ordinary answers`}`);
  for (const text of new Set(RUNS.flatMap((run) => run.doubts || []))) body.append(el("div", { cls: "warn" }, text));
  if (pairs.length) body.append(el("p", { cls: "note" }, `Whiskers are 95% intervals for the share, given the number of answers${DATA.verdicts.length ? "; dashed lines are the bars a study is judged against" : ""}.${words.length ? ` Answers are judged by checkers: ${words.join("; ")}.` : ""}`));
}

function drawRuns(body) {
  const columns = ["run", "state", "rules", "data", "steps", "loss", "s / step"];
  body.append(el("div", { cls: "card" }, table(columns.map((c, i) => el("th", { cls: i >= 4 ? "num" : null }, c)), RUNS.map((run) => el("tr", {},
    el("td", {}, runName(run), run.title === run.run_id ? null : el("div", { cls: "quiet small" }, run.run_id)),
    el("td", {}, el("span", { cls: `pill ${run.status === "done" ? "good" : run.status === "running" ? "" : "bad"}` }, run.status)),
    el("td", {}, run.rule_texts.length ? run.rule_texts.map((text) => el("div", {}, text)) : "none"),
    el("td", {}, run.data.map((d) => el("div", {}, d.split("/").pop()))),
    el("td", { cls: "num" }, run.steps_planned && run.steps !== run.steps_planned ? `${run.steps} of ${run.steps_planned}` : run.steps),
    el("td", { cls: "num" }, `${format(run.loss_first)} → ${format(run.loss_last)}`),
    el("td", { cls: "num" }, format(run.seconds_per_step)))))));
}

const moversView = { run: RUNS[0].run_id, hook: "", sort: "uptake", down: true, search: "", all: false };

function spark(values) {
  const shown = values.map((v) => (isWord(v) || v === null ? null : v)), w = 74, h = 20;
  const low = Math.min(0, ...shown.filter((v) => v !== null)), high = Math.max(0, ...shown.filter((v) => v !== null));
  const at = (v) => h - 2 - ((v - low) / (high - low || 1)) * (h - 4);
  const ns = "http://www.w3.org/2000/svg"; // a name, not an address: nothing is fetched
  const svg = document.createElementNS(ns, "svg"), line = document.createElementNS(ns, "polyline");
  svg.setAttribute("width", w); svg.setAttribute("height", h); svg.setAttribute("aria-hidden", "true");
  const points = [[0, 0], ...shown.map((v, i) => [i + 1, v])].filter(([, v]) => v !== null);
  line.setAttribute("points", points.map(([i, v]) => `${((i / Math.max(1, shown.length)) * (w - 4) + 2).toFixed(1)},${at(v).toFixed(1)}`).join(" "));
  line.setAttribute("fill", "none"); line.setAttribute("stroke", "var(--accent)"); line.setAttribute("stroke-width", "1.6");
  svg.append(line);
  return svg;
}

function drawMovers(body, redraw) {
  const run = RUNS.find((r) => r.run_id === moversView.run), hooks = Object.keys(run.movers);
  if (!hooks.includes(moversView.hook)) moversView.hook = hooks[hooks.length - 1] || "";
  const search = el("input", { type: "search", placeholder: "Search labels, ids, concepts", "aria-label": "Search features", value: moversView.search, oninput: () => { moversView.search = search.value; fill(); } });
  body.append(el("div", { cls: "controls" },
    RUNS.length > 1 ? select("run", RUNS.map((r) => [r.run_id, r.title]), moversView.run, (v) => { moversView.run = v; redraw(); }) : null,
    hooks.length > 1 ? segment("Hookpoint", hooks.map((h) => [h, h]), moversView.hook, (v) => { moversView.hook = v; redraw(); }) : null, search));
  const card = el("div", { cls: "card" });
  body.append(card);
  const movers = run.movers[moversView.hook];
  if (!movers || !movers.rows.length) { card.append(el("p", { cls: "quiet" }, "No features were recorded in this run.")); return; }
  // Where none was learned the page says so; what was read of them all the same is behind a click.
  const holder = movers.none ? el("div", {}) : card;
  if (movers.none) card.append(el("p", {}, `Of the features at ${moversView.hook} ${movers.none}.`), el("details", {}, el("summary", {}, "Their figures all the same"), holder));
  const columns = [["feature", "feature"], ["label", "label"], ["uptake", "uptake"], ["", `${movers.by} over time`], ["drift", "drift"], ["drift_direction", "along direction"], ["own", "own answers"], ["taught", "taught"], ["push", "push"], ["attribution", "attribution"], ["probe_rate", "fires on"]]
    .filter(([key]) => key !== "drift_direction" || movers.by === "drift") // as wide as a screen bears
    .filter(([key, name]) => key === "feature" || key === "label" || movers.rows.some((row) => (key ? row[key] !== undefined : row.spark.length)));
  if (!columns.some(([key]) => key === moversView.sort)) moversView.sort = columns.some(([key]) => key === movers.by) ? movers.by : "push";
  function fill() {
    const word = moversView.search.trim().toLowerCase();
    const rows = movers.rows.filter((row) => !word || `${row.feature} ${row.label} ${row.concepts.join(" ")}`.toLowerCase().includes(word));
    const size = (row) => { const v = row[moversView.sort]; return isWord(v) && moversView.sort !== "label" ? Infinity : typeof v === "number" ? (moversView.sort === "feature" || moversView.sort === "uptake" ? v : Math.abs(v)) : -Infinity; };
    rows.sort((a, b) => (moversView.sort === "label" ? a.label.localeCompare(b.label) : size(b) - size(a) || 0) * (moversView.down ? 1 : -1));
    const shown = moversView.all ? rows : rows.slice(0, 15);
    const top = Math.max(1e-12, ...movers.rows.map((row) => (typeof row[movers.by] === "number" ? Math.abs(row[movers.by]) : 0)));
    const head = columns.map(([key, name]) => el("th", { cls: key === "label" || !key ? null : "num", "aria-sort": key === moversView.sort ? (moversView.down ? "descending" : "ascending") : null },
      key ? el("button", { type: "button", tabindex: "0", onclick: () => { moversView.down = moversView.sort === key ? !moversView.down : true; moversView.sort = key; keepFocus(holder, fill); } }, name) : name));
    const cell = (row, key) => {
      if (key === "label") return el("td", { cls: "label" }, row.label || el("span", { cls: "quiet" }, "no label"), " ", row.concepts.map((c) => el("span", { cls: "pill" }, c)));
      if (key === "") return el("td", {}, spark(row.spark));
      if (key === "feature") return el("td", { cls: "num" }, row.feature);
      if (key === "probe_rate") return el("td", { cls: "num" }, isWord(row.probe_rate) ? number(row.probe_rate) : row.probe_rate === undefined ? "–" : `${(100 * row.probe_rate).toFixed(1)}%`);
      const share = key === movers.by && typeof row[key] === "number" ? Math.round(28 * Math.abs(row[key]) / top) : 0;
      return el("td", { cls: "num", style: share ? { background: `color-mix(in srgb, var(${row[key] < 0 ? "--c1" : "--c0"}) ${share}%, transparent)`, "padding-right": "8px" } : {} }, number(row[key], true));
    };
    holder.replaceChildren(el("div", { cls: `scroll${shown.length > 15 ? " tall" : ""}`, tabindex: "0", role: "region", "aria-label": "Features that were taught most" }, el("table", {}, el("thead", {}, el("tr", {}, head)),
      el("tbody", {}, shown.map((row) => el("tr", {}, columns.map(([key]) => cell(row, key))))))),
    el("p", { cls: "quiet small", style: { margin: "12px 0 0" } }, `${shown.length} of ${rows.length} kept here, of ${movers.of} features; after step ${movers.step}. `,
      rows.length > 15 ? el("button", { cls: "link", type: "button", onclick: () => { moversView.all = !moversView.all; keepFocus(holder, fill); } }, moversView.all ? "Show fewer" : "Show all") : null));
  }
  fill();
}

const SOURCES = [...new Set(RUNS.flatMap((run) => Object.values(run.examples).flatMap((of) => Object.values(of).flatMap((found) => Object.keys(found.sources)))))].sort();
const sourceColor = (name) => `var(--c${(4 + SOURCES.indexOf(name)) % 8})`;
const teachView = { run: (RUNS.find((r) => Object.keys(r.examples).length) || RUNS[0]).run_id, hook: "" };

function drawExamples(body, redraw) {
  const run = RUNS.find((r) => r.run_id === teachView.run);
  const hooks = [...new Set(Object.values(run.examples).flatMap((of) => Object.keys(of)))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  if (!hooks.includes(teachView.hook)) teachView.hook = hooks.includes("all") ? "all" : hooks[hooks.length - 1] || "";
  body.append(el("div", { cls: "controls" },
    RUNS.length > 1 ? select("run", RUNS.filter((r) => Object.keys(r.examples).length).map((r) => [r.run_id, r.title]), teachView.run, (v) => { teachView.run = v; redraw(); }) : null,
    hooks.length > 1 ? segment("Hookpoint", hooks.map((h) => [h, h]), teachView.hook, (v) => { teachView.hook = v; redraw(); }) : null));
  const grid = el("div", { cls: "grid two" });
  for (const { name: concept } of DATA.concepts) {
    const found = (run.examples[concept] || {})[teachView.hook];
    if (!found) continue;
    const sources = Object.entries(found.sources);
    const showing = found.showing === null ? null : found.showing ? `${found.showing} of ${found.of} rows show it, by what tells the concept's examples.` : `No row of ${found.of} shows it, by what tells the concept's examples: these come nearest.`;
    grid.append(el("div", { cls: "card" }, el("h3", {}, concept),
      showing ? el("p", { cls: "quiet small" }, showing) : null,
      sources.length ? [el("div", { cls: "stack", "aria-hidden": "true" }, sources.map(([name, share]) => el("span", { style: { width: `${100 * share}%`, background: sourceColor(name) } }))),
        el("div", { cls: "legend small" }, sources.map(([name, share]) => el("span", {}, el("span", { cls: "dot", style: { background: sourceColor(name) } }), `${percent(share)} of it from ${name}`)))] : null,
      found.rows.length ? found.rows.map((row) => exampleRow(row, found.by)) : el("p", { cls: "quiet" }, "No row taught this concept.")));
  }
  body.append(grid);
}

const marked = (parts) => parts.map(([text, concept, strength]) => (concept ? el("mark", { title: concept, style: strength < 1 ? { background: `color-mix(in srgb, var(--mark) ${Math.round(25 + 75 * strength)}%, transparent)` } : null }, text) : text));

function exampleRow(row, by) {
  const text = row.parts.map((part) => part[0]).join("");
  const more = el("button", { cls: "link", type: "button", "aria-expanded": "false", onclick: () => { const open = node.classList.toggle("open"); more.textContent = open ? "less" : "more"; more.setAttribute("aria-expanded", String(open)); } }, "more");
  const short = text.length < 240 && text.split("\n").length < 4;
  const node = el("div", { cls: `example${short ? " short" : ""}` },
    el("div", { cls: "meta" }, el("span", { cls: "pill" }, row.source), `row ${row.row_id}`, el("span", { cls: "num" }, `${by} ${format(row[by])}, ${(100 * row.share).toFixed(1)}% of all`), `seen ${row.times}×`, short ? null : more),
    el("div", { cls: "text" }, marked(row.parts)));
  return node;
}

const answersView = { set: Object.keys(DATA.prompts)[0], all: false };

function answerCell(answer) {
  if (!answer) return el("td", {}, el("span", { cls: "quiet" }, "–"));
  return el("td", {}, el("div", { cls: "text" }, marked(answer.parts)),
    answer.hits.length ? el("span", { cls: "hit" }, answer.hits.map((hit) => el("span", { cls: "pill" }, `shows ${hit}`))) : null);
}

function drawAnswers(body, redraw) {
  const sets = Object.keys(DATA.prompts), items = DATA.prompts[answersView.set];
  if (sets.length > 1) body.append(el("div", { cls: "controls" }, segment("Prompts", sets.map((s) => [s, s]), answersView.set, (v) => { answersView.set = v; answersView.all = false; redraw(); })));
  const runs = RUNS.filter((run) => items.some((item) => item.after[run.run_id]));
  const shown = answersView.all ? items : items.slice(0, 5);
  body.append(el("div", { cls: "card answers" }, table([el("th", {}, "prompt"), el("th", {}, "before"), ...runs.map((run) => el("th", {}, RUNS.length > 1 ? runName(run) : "after"))],
    shown.map((item) => el("tr", {}, el("td", {}, el("div", { cls: "text" }, item.prompt)), answerCell(item.before), runs.map((run) => answerCell(item.after[run.run_id]))))),
  items.length > 5 ? el("p", { cls: "small" }, el("button", { cls: "link", type: "button", onclick: () => { answersView.all = !answersView.all; redraw(); } }, answersView.all ? "Show fewer" : `Show all ${items.length}`)) : null));
}

function drawEvents(body) {
  body.append(el("div", { cls: "grid" }, RUNS.map((run) => {
    const trouble = run.events.filter((event) => event.trouble).length;
    const rows = run.events.map((event) => el("tr", {}, el("td", { cls: "num" }, event.step === undefined || event.step === null ? "–" : event.step), el("td", {}, el("span", { cls: `pill ${event.trouble ? "bad" : ""}` }, event.kind)), el("td", {}, event.text), el("td", { cls: "quiet", style: { "white-space": "nowrap" } }, event.time)));
    return el("details", { cls: "card", open: trouble > 0 || (RUNS.length === 1 && rows.length < 12) }, el("summary", {}, `${run.title}: ${rows.length} events, ${trouble ? `${trouble} of them trouble` : "no gaps, no trouble"}`),
      rows.length ? el("div", { cls: "scroll tall" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", { cls: "num" }, "step"), el("th", {}, "kind"), el("th", {}, "what"), el("th", {}, "time (UTC)"))), el("tbody", {}, rows))) : null,
      run.events_left_out ? el("p", { cls: "quiet small" }, `${run.events_left_out} more in events.jsonl.`) : null);
  })));
}

function drawDetails(body) {
  const card = el("div", { cls: "card" });
  const terms = [...ESTIMATORS.map((e) => [e.name, e.text]),
    ["Unexplained", "Share of the gradient that no direction of the dictionary reaches: what these curves cannot see."],
    ["FVU, L0", "How badly the dictionary reconstructs the live model's activations (share of variance, lower is better), and how many features fire per token. A dictionary that fits worse during training describes the model worse."]];
  card.append(el("details", { open: true }, el("summary", {}, "How to read the estimators"), el("dl", {}, terms.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]))));
  const health = RUNS.flatMap((run) => Object.entries(run.health).filter(([, of]) => Object.keys(of).length).map(([hook, of]) => el("tr", {}, el("td", {}, runName(run)), el("td", {}, hook),
    ["fvu", "l0", "unexplained"].map((key) => el("td", { cls: "num" }, of[key] ? [number(of[key][0]), " → ", number(of[key][1])] : "–")))));
  if (health.length) card.append(el("details", {}, el("summary", {}, "Dictionaries on the live model"), table([el("th", {}, "run"), el("th", {}, "hookpoint"), el("th", { cls: "num" }, "FVU, first → last"), el("th", { cls: "num" }, "L0"), el("th", { cls: "num" }, "gradient unexplained")], health)));
  const worth = RUNS.flatMap((run) => Object.entries(run.movers).flatMap(([hook, m]) => Object.entries(m.faithfulness).map(([name, of]) => el("tr", {}, el("td", {}, runName(run)), el("td", {}, hook), el("td", {}, ESTIMATORS.find((e) => e.key === name).name),
    ["uptake", "drift", "drift_direction"].map((truth) => el("td", { cls: "num" }, format(of[truth], true)))))));
  if (worth.length) card.append(el("details", {}, el("summary", {}, "How well the estimates foretold what was measured, in these runs"), el("p", { cls: "quiet small" }, "Rank correlation over all features of a hookpoint, sums over the run against the last reading: 1 foretells the order exactly, 0 says nothing."),
    table([el("th", {}, "run"), el("th", {}, "hookpoint"), el("th", {}, "estimate"), el("th", { cls: "num" }, "with uptake"), el("th", { cls: "num" }, "with drift"), el("th", { cls: "num" }, "with drift along direction")], worth)));
  const detection = DATA.concepts.flatMap((c) => Object.entries(c.features).map(([hook, ids]) => { const d = c.detection[hook]; return el("tr", {}, el("td", {}, c.name), el("td", {}, hook), el("td", { cls: "num" }, ids.length), el("td", { cls: "num" }, d ? d.auc.toFixed(3) : "–"),
    el("td", { cls: "num" }, d ? `${percent(d.gate_rate_positive)} / ${percent(d.gate_rate_negative)}` : "–"), el("td", {}, d && d.warning ? d.warning : "")); }));
  if (detection.length) card.append(el("details", {}, el("summary", {}, "Concepts and how well their features tell them apart"), table([el("th", {}, "concept"), el("th", {}, "hookpoint"), el("th", { cls: "num" }, "features"), el("th", { cls: "num" }, "held-out AUC"), el("th", { cls: "num" }, "tokens gated, with / without"), el("th", {}, "")], detection)));
  for (const run of RUNS) card.append(el("details", {}, el("summary", {}, `Config of ${run.run_id}`), el("pre", { tabindex: "0" }, run.config),
    el("p", { cls: "quiet small" }, Object.entries(run.versions).map(([name, v]) => `${name} ${Array.isArray(v) ? v.join(", ") || "none" : v}`).join(" · "))));
  if (DATA.notes.length) card.append(el("details", { open: true }, el("summary", {}, "Notes"), DATA.notes.map((note) => el("p", { cls: "small" }, note))));
  body.append(card);
}

const hasCurves = RUNS.some((run) => Object.keys(run.curves).length);
if (RUNS.some(tells)) section("learned", "Learned", RUNS.length > 1 ? "What did these runs learn?" : "What did this run learn?", null, drawLearned);
if (RUNS.some((run) => Object.keys(run.rates).length || Object.keys(run.nll).length)) section("outcome", "Outcome", "What the model does", "Measured on prompts and texts that were not trained on.", drawOutcome);
section("runs", RUNS.length > 1 ? "Runs" : "Run", RUNS.length > 1 ? "Runs" : "Run", null, drawRuns);
const redrawCurves = hasCurves ? section("curves", "Curves", "Learning curves", null, drawCurves) : () => {};
if (MEASURED) section("where", "Where", "Where and when", `${MEASURED === "uptake" ? "Uptake" : "Drift"} of each concept at each hookpoint over the run: blue has come, orange has gone. ${RUNS.length > 1 ? "Rows of a group share their scale." : "Every row has a scale of its own."}`, drawHeat);
if (RUNS.some((run) => Object.values(run.movers).some((m) => m.rows.length))) section("movers", "Features", "Features that were taught most", "Single dictionary features, with their automatic labels. Uptake is what the model learned to say, drift what it reads differently. Sums over the run: taught, the loss on tokens that express a feature; push and attribution, what the gradients asked for.", drawMovers);
if (RUNS.some((run) => Object.keys(run.examples).length)) section("taught", "Taught by", "What taught it", "Training rows that taught each concept most, over the steps that used them: by the loss of their tokens that express it. Those tokens are marked.", drawExamples);
if (Object.keys(DATA.prompts).length) section("answers", "Answers", "Answers, before and after", "Greedy answers to held-out prompts. Marked words are what the concept's checker recognised.", drawAnswers);
section("events", "Events", "Events", null, drawEvents);
section("details", "Details", "Details", null, drawDetails);

document.getElementById("theme").addEventListener("click", () => { setTheme(document.documentElement.dataset.theme !== "dark"); redrawCurves(); });
lightOnPaper(() => { redrawCurves(); resize(); });
let pending = 0;
new ResizeObserver(() => { cancelAnimationFrame(pending); pending = requestAnimationFrame(resize); }).observe(document.getElementById("page"));
