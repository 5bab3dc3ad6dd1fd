// Curves: one plot per concept and hookpoint, a line per run, drawn by uPlot.
// Shown first where every concept has it: one whose features were named by hand has none, and its plots would be empty.
const WEIGHED = RUNS.every((run) => {
  const read = Object.keys(run.curves).filter((key) => key.startsWith("concept/") && key.endsWith("/uptake"));
  return read.length && read.every((key) => run.curves[`${key}_weighed`]);
});
const view = { estimator: WEIGHED ? "uptake_weighed" : "uptake", summed: true, smooth: 0, loss: false, concept: "", hookpoint: "", hidden: new Set() };
let plots = [];
// What was measured of every concept: uptake, in older runs drift; undefined where neither was.
const MEASURED = ["uptake", "drift"].find((name) => RUNS.some((run) => Object.keys(run.curves).some((key) => key.startsWith("concept/") && key.endsWith(`/${name}`))));

const finite = (curve) => curve.y.map((value) => (isWord(value) ? null : value));

// Exponential mean over about `width` points, corrected at the start; gaps stay gaps.
function smoothed(values, width) {
  if (!width) return values;
  const keep = 1 - 1 / (1 + width);
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    sum = keep * sum + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}

function summed(curve) {
  let total = 0;
  return finite(curve).map((value) => (value === null ? null : (total += value * curve.bin)));
}

// Lines `[{run, x, y, curve, dash, scale}]` of one scalar key.
function lines(key, sum, extra) {
  return RUNS.filter((run) => !view.hidden.has(run.run_id) && run.curves[key]).map((run) => {
    const curve = run.curves[key];
    let y = sum ? summed(curve) : smoothed(finite(curve), view.smooth);
    let x = DATA.axes[curve.axis];
    if (x[0] > 0 && ESTIMATORS.some((e) => e.zero && key.startsWith("concept/") && key.endsWith(`/${e.key}`))) { x = [0, ...x]; y = [0, ...y]; }
    const floor = !sum && run.curves[`${key}_noise`];
    // What chance makes, drawn as a band around zero; where it is not known (null) there is none.
    const noise = floor && floor.axis === curve.axis ? [...(y.length > floor.y.length ? [0] : []), ...smoothed(finite(floor), view.smooth)] : null;
    return { run, x, y, curve, noise, scale: "y", ...extra };
  });
}

// Alarms that belong to a plot: those about its concept; `*`: all.
const alarmsOf = (all, concept) => [...new Set(all.map((line) => line.run))].flatMap((run) => run.alarms.filter((a) => concept === "*" || (a.about === "concept" && a.name === concept)));

function plot(title, aside, all, options = {}) {
  const alarms = alarmsOf(all, options.concept);
  const readout = el("div", { cls: "readout" });
  const holder = el("div", {});
  const broken = all.filter((line) => line.scale === "y").map((line) => {
    const at = DATA.axes[line.curve.axis].filter((_, i) => isWord(line.curve.y[i]));
    return at.length ? `${RUNS.length > 1 ? `${line.run.title}: ` : ""}not finite at ${at.length === 1 ? "step" : "steps"} ${at.slice(0, 6).join(", ")}${at.length > 6 ? ` and ${at.length - 6} more` : ""}` : null;
  }).filter(Boolean);
  const card = el("div", { cls: "card plot" }, el("h3", {}, title, el("span", { cls: "quiet" }, aside)), readout, holder,
    broken.length ? el("div", { cls: "warn" }, broken.join("; ")) : null);
  if (!all.length) {
    holder.append(el("p", { cls: "quiet small" }, "Nothing recorded."));
    return card;
  }
  const data = uPlot.join(all.map((line) => [line.x, line.y]));
  const ink = resolved("--quiet"), grid = resolved("--line");
  const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1, size: 4 }, font: "12px system-ui, sans-serif" };
  const hasLoss = all.some((line) => line.scale === "loss");
  const noise = options.zero === false ? -Infinity : Math.max(0, ...all.flatMap((line) => line.noise || []));
  const few = all.every((line) => line.x.length <= 24);
  const settings = {
    width: 400, height: options.height || 220, padding: [12, hasLoss ? 0 : 16, 0, 0], legend: { show: false },
    cursor: { sync: { key: "steps" }, y: false, points: { size: 6 } },
    scales: { x: { time: false }, y: { range: (u, low, high) => (low === null ? [0, 1] : span(Math.min(low, -noise), Math.max(high, noise), options.zero !== false)) }, loss: {} },
    axes: [{ ...axis, size: 30, values: (u, ticks) => ticks.map((v, i) => (!Number.isInteger(v) ? "" : i === 0 ? `step ${v}` : v)) },
      { ...axis, size: 56, values: (u, ticks) => ticks.map(tick) },
      ...(hasLoss ? [{ ...axis, scale: "loss", side: 1, size: 44, grid: { show: false }, values: (u, ticks) => ticks.map(tick) }] : [])],
    series: [{}, ...all.map((line) => ({
      scale: line.scale, stroke: resolved(`--c${line.run.color}`), width: line.scale === "loss" ? 1 : 2.2,
      dash: line.scale === "loss" ? [2, 4] : line.dash, points: { show: few && line.scale === "y", size: 5, fill: resolved(`--c${line.run.color}`) },
    }))],
    hooks: {
      drawClear: [(u) => bands(u, all)],
      draw: [(u) => { marks(u, all); alarmMarks(u, alarms); }],
      setCursor: [(u) => {
        const i = u.cursor.idx;
        readout.replaceChildren(...(i === null || i === undefined ? [] : [el("span", {}, `step ${u.data[0][i]}`), ...all.map((line, n) => {
          const value = u.data[n + 1][i], floor = line.noise ? line.noise[line.x.indexOf(u.data[0][i])] : null;
          return value === undefined || value === null ? null : el("span", {}, el("span", { style: { color: color(line.run) } }, "● "),
            `${line.scale === "loss" ? "loss " : ""}${format(value)}${floor ? ` (noise ±${format(floor)})` : ""}`);
        }).filter(Boolean), ...alarms.filter((a) => a.step === u.data[0][i]).map((a) => el("span", { cls: "alarm" }, `▼ ${a.text}`))]));
      }],
    },
  };
  const chart = new uPlot(settings, data, holder);
  plots.push({ chart, holder, height: settings.height });
  return card;
}

const tick = (value) => String(parseFloat(value.toPrecision(3))).replace("-", "−");

function span(low, high, zero) {
  if (low === null || high === null) return [0, 1];
  if (zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low === 0 ? 0 : low - room, high === 0 ? 0 : high + room];
}

// The noise floor of every line: a band around zero that it stays in by chance in 95 of 100 cases.
function bands(u, all) {
  const { left, top, width, height } = u.bbox, ctx = u.ctx;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
  ctx.globalAlpha = 0.13;
  for (const line of all.filter((l) => l.noise)) {
    const edge = line.x.map((x, i) => [x, line.noise[i]]).filter(([, floor]) => floor !== null && floor !== undefined);
    ctx.fillStyle = resolved(`--c${line.run.color}`);
    ctx.beginPath();
    for (const [x, y] of [...edge, ...edge.map(([x, floor]) => [x, -floor]).reverse()]) ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(y, "y", true));
    ctx.fill();
  }
  ctx.restore();
}

// Zero line, a strip along the top while a rule acts, a dashed line where the policy changed.
function marks(u, all) {
  const { left, top, width, height } = u.bbox, ctx = u.ctx, ratio = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top - 8 * ratio, width, height + 8 * ratio);
  ctx.clip();
  const zero = u.valToPos(0, "y", true);
  if (zero > top && zero < top + height) {
    ctx.fillStyle = resolved("--quiet");
    ctx.fillRect(left, zero, width, ratio);
  }
  const runs = [...new Set(all.map((line) => line.run))];
  runs.filter((run) => run.markers.spans.length).forEach((run, i) => {
    ctx.fillStyle = resolved(`--c${run.color}`);
    for (const { from, to } of run.markers.spans) {
      const a = u.valToPos(from, "x", true), b = u.valToPos(to, "x", true);
      ctx.fillRect(a, top - (7 - 4 * i) * ratio, b - a, 3 * ratio);
    }
  });
  ctx.lineWidth = 1.2 * ratio;
  ctx.setLineDash([4 * ratio, 3 * ratio]);
  for (const run of runs) {
    ctx.strokeStyle = resolved(`--c${run.color}`);
    const edges = run.markers.spans.flatMap((s) => [s.from > 0 ? s.from : null, s.to < run.steps ? s.to : null]);
    for (const step of [...edges, ...run.markers.changes.map((change) => change.step)].filter((s) => s !== null)) {
      const x = u.valToPos(step, "x", true);
      ctx.beginPath(); ctx.moveTo(x, top); ctx.lineTo(x, top + height); ctx.stroke();
    }
  }
  ctx.restore();
}

// A triangle at the top and a dotted line at the step of an alarm.
function alarmMarks(u, alarms) {
  const { left, top, width, height } = u.bbox, ctx = u.ctx, ratio = devicePixelRatio;
  ctx.save();
  ctx.fillStyle = ctx.strokeStyle = resolved("--alarm");
  ctx.lineWidth = 1.4 * ratio;
  ctx.setLineDash([1.5 * ratio, 3 * ratio]);
  for (const step of new Set(alarms.map((a) => a.step))) {
    const x = u.valToPos(step, "x", true);
    if (x < left || x > left + width) continue;
    ctx.beginPath(); ctx.moveTo(x, top); ctx.lineTo(x, top + height); ctx.stroke();
    ctx.beginPath(); ctx.moveTo(x - 5 * ratio, top - 8 * ratio); ctx.lineTo(x + 5 * ratio, top - 8 * ratio); ctx.lineTo(x, top); ctx.fill();
  }
  ctx.restore();
}

function resize() {
  for (const { chart, holder, height } of plots) if (holder.clientWidth > 40) chart.setSize({ width: holder.clientWidth, height });
}

function drawCurves(body, redraw) {
  plots.forEach(({ chart }) => chart.destroy());
  plots = [];
  const estimators = ESTIMATORS.filter((e) => RUNS.some((run) => Object.keys(run.curves).some((key) => key.startsWith("concept/") && key.endsWith(`/${e.key}`))));
  if (estimators.length && !estimators.some((e) => e.key === view.estimator)) view.estimator = estimators[0].key;
  const estimator = estimators.find((e) => e.key === view.estimator);
  const keys = [...new Set(RUNS.flatMap((run) => Object.keys(run.curves)))].filter((key) => key.startsWith("concept/"));
  const pairs = [...new Map(keys.map((key) => { const [concept, hook] = split(key); return [`${concept}/${hook}`, { concept, hook }]; })).values()];
  const order = DATA.concepts.map((c) => c.name);
  pairs.sort((a, b) => order.indexOf(a.concept) - order.indexOf(b.concept) || a.hook.localeCompare(b.hook, undefined, { numeric: true }));
  const concepts = [...new Set(pairs.map((p) => p.concept))], hooks = [...new Set(pairs.map((p) => p.hook))];
  hooks.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  const set = (name) => (value) => { view[name] = value; redraw(); };
  const range = el("input", { type: "range", min: 0, max: 20, value: view.smooth, "aria-label": "Smoothing", onchange: () => { view.smooth = Number(range.value); redraw(); } });
  body.append(el("div", { cls: "controls" },
    estimators.length > 1 ? (estimators.length > 6 ? select : segment)(estimators.length > 6 ? "curve" : "Estimator", estimators.map((e) => [e.key, e.name]), view.estimator, set("estimator")) : null,
    estimator && estimator.summable ? checkbox("summed since the start", view.summed, set("summed")) : null,
    concepts.length > 2 ? select("concept", [["", "all"], ...concepts.map((c) => [c, c])], view.concept, set("concept")) : null,
    hooks.length > 3 ? select("hookpoint", [["", "all"], ...hooks.map((h) => [h, h])], view.hookpoint, set("hookpoint")) : null,
    el("label", {}, "smoothing", range), checkbox("loss on top", view.loss, set("loss"))));
  if (RUNS.length > 1) body.append(el("div", { cls: "legend" }, RUNS.map((run) => el("label", {}, checkboxFor(run, redraw), " ", el("span", {}, dot(run), run.title)))));
  if (estimator) body.append(el("p", { cls: "explain" }, `${estimator.name}: ${estimator.text}${faithfulness(estimator.key)}`));
  const grid = el("div", { cls: "grid two" });
  const shown = pairs.filter((p) => (!view.concept || p.concept === view.concept) && (!view.hookpoint || p.hook === view.hookpoint)).slice(0, 24);
  for (const { concept, hook } of shown) {
    const sum = estimator.summable && view.summed;
    const all = lines(`concept/${concept}/${hook}/${estimator.key}`, sum);
    if (view.loss && all.length) all.push(...lines("train/loss", false, { scale: "loss" }));
    grid.append(plot(concept, `${hook} · ${estimator.name.toLowerCase()}${sum ? ", summed" : ""}`, all, { concept }));
  }
  for (const { name: concept } of DATA.concepts) {
    if ((!view.concept || view.concept === concept) && RUNS.some((run) => run.curves[`own/${concept}/rate`])) grid.append(plot(`Own answers that show ${concept}`, "share", lines(`own/${concept}/rate`, false), { concept }));
  }
  if (RUNS.some((run) => run.curves["train/loss"])) grid.append(plot("Training loss", "nats per token", lines("train/loss", false), { zero: false, concept: "*" }));
  const shares = RUNS.flatMap((run) => Object.keys(run.curves).filter((key) => key.startsWith("rule/")));
  for (const key of new Set(shares)) grid.append(plot(`Touched by ${key.slice(5, -6)}`, "share of tokens or energy", lines(key, false)));
  body.append(grid);
  if (estimator && RUNS.some((run) => Object.keys(run.curves).some((key) => key.endsWith(`/${estimator.key}_noise`)))) body.append(el("p", { cls: "note" }, "The band around zero is what chance makes: flipping the signs of whole texts keeps the curve within it in 95 of 100 cases. A curve inside its band says nothing yet."));
  if (RUNS.some((run) => run.markers.spans.length)) body.append(el("p", { cls: "note" }, "A strip along the top of a plot shows while a rule acts in the run of that colour; a dashed line shows where a rule begins or ends."));
  if (RUNS.some((run) => run.alarms.length)) body.append(el("p", { cls: "note" }, "A triangle with a dotted line marks the step of an alarm: about the concept of the plot, and every alarm on the training loss."));
  if (shown.length < pairs.length && !view.concept && !view.hookpoint) body.append(el("p", { cls: "note" }, `${pairs.length - shown.length} more plots: choose a concept or a hookpoint.`));
  requestAnimationFrame(resize);
}

function checkboxFor(run, redraw) {
  const node = el("input", { type: "checkbox", checked: !view.hidden.has(run.run_id), "aria-label": `Show ${run.title}`, onchange: () => {
    if (node.checked) view.hidden.delete(run.run_id); else view.hidden.add(run.run_id);
    redraw();
  } });
  return node;
}

function split(key) {
  const parts = key.split("/");
  return [parts.slice(1, -2).join("/"), parts[parts.length - 2]];
}

// Uptake (or drift) over steps as coloured cells, a row per concept, hookpoint and run; colours share a scale per concept and hookpoint.
function drawHeat(body) {
  const keys = [...new Set(RUNS.flatMap((run) => Object.keys(run.curves)))].filter((key) => key.startsWith("concept/") && key.endsWith(`/${MEASURED}`));
  const order = DATA.concepts.map((c) => c.name);
  keys.sort((a, b) => order.indexOf(split(a)[0]) - order.indexOf(split(b)[0]) || a.localeCompare(b, undefined, { numeric: true }));
  const heat = el("div", { cls: "heat" });
  let last = 0;
  for (const key of keys.slice(0, 40)) {
    const [concept, hook] = split(key);
    const rows = RUNS.filter((run) => run.curves[key]);
    const top = Math.max(1e-12, ...rows.flatMap((run) => finite(run.curves[key]).map((v) => Math.abs(v || 0))));
    if (RUNS.length > 1) heat.append(el("div", { cls: "group" }, `${concept} · ${hook}`));
    rows.forEach((run) => {
      const { y, axis } = run.curves[key], steps = DATA.axes[axis];
      last = Math.max(last, steps[steps.length - 1]);
      const every = Math.max(1, Math.ceil(y.length / 120));
      const cells = y.map((value, n) => [value, steps[n]]).filter((_, n) => (y.length - 1 - n) % every === 0).map(([value, step]) => {
        const share = isWord(value) ? 0 : Math.round(100 * Math.abs(value) / top);
        return el("i", { title: `step ${step}: ${format(value, true)}`, style: { background: isWord(value) ? "var(--bad)" : `color-mix(in srgb, var(${value < 0 ? "--c1" : "--c0"}) ${share}%, var(--soft))` } });
      });
      heat.append(el("div", { cls: "row" },
        el("span", { title: `${concept} · ${hook} · ${run.title}` }, RUNS.length > 1 ? [dot(run), run.title] : `${concept} · ${hook}`), el("div", { cls: "cells" }, cells),
        el("span", {}, number(y[y.length - 1], true))));
    });
  }
  heat.append(el("div", { cls: "row" }, el("span", {}), el("div", { cls: "ends" }, el("span", {}, "start"), el("span", {}, `step ${last}`)), el("span", { cls: "quiet" }, MEASURED)));
  body.append(el("div", { cls: "card" }, heat));
}
