// What a run learned, in words, and its alarms.
const tellsMost = (run) => run.learned_in_words.length || run.said_less || run.alarms.length;
const tells = (run) => tellsMost(run) || run.beyond_chance;
const learnedView = { run: (RUNS.find(tellsMost) || RUNS.find(tells) || RUNS[0]).run_id };

const small = (share) => (typeof share !== "number" ? "?" : share >= 0.1 || share === 0 ? percent(share) : `${parseFloat((100 * share).toPrecision(2))}%`);

// Before and now, as two bars: `rows` of `[name, share, text]`.
function pairBars(title, rows, run) {
  return el("div", { cls: "pair" }, el("h4", {}, title), el("div", { cls: "bars" }, rows.flatMap(([name, share, text], i) => [
    el("div", { cls: "name" }, name),
    el("div", { cls: "track", role: "img", "aria-label": `${title}, ${name}: ${text}` },
      el("div", { cls: "fill", style: { width: `${100 * Math.min(1, Math.max(0, Number(share) || 0))}%`, background: i ? color(run) : "var(--quiet)" } })),
    el("div", { cls: "value" }, text)])));
}

function clusterCard(entry, run) {
  const [before, now] = entry.probability, own = entry.own;
  return el("article", { cls: "card cluster" },
    el("h3", {}, el("span", { cls: "share" }, small(entry.share)), " of what was learned"),
    el("ul", { cls: "words", "aria-label": "Words" }, entry.words.map((word) => el("li", {}, word))),
    el("blockquote", { cls: "text" }, entry.passage.map(([text, mark]) => (mark ? el("mark", {}, text) : text))),
    el("div", { cls: "grid pairs" },
      pairBars("Probability of the marked tokens", [["before", before, small(before)], ["now", now, small(now)]], run),
      own ? pairBars("Own answers that show it", [["before", own.before / own.of, `${own.before} of ${own.of}`], ["now", own.now / own.of, `${own.now} of ${own.of}`]], run) : null),
    own && own.now > own.before ? el("dl", { cls: "said" }, el("dt", {}, "Said before"), el("dd", { cls: "text" }, own.said.before), el("dt", {}, "Says now"), el("dd", { cls: "text" }, own.said.now)) : null,
    el("p", { cls: "quiet small" }, `${entry.count} features${entry.labels.length ? `, labelled ${entry.labels.join("; ")}` : ""}`));
}

function lessCard(less) {
  return el("article", { cls: "card less" }, el("h3", {}, "Said less than before"),
    el("ul", { cls: "words", "aria-label": "Words" }, less.words.map((word) => el("li", {}, word))),
    el("p", { cls: "quiet small" }, less.text.replaceAll("->", "→")));
}

function drawLearned(body, redraw) {
  const run = RUNS.find((r) => r.run_id === learnedView.run), found = run.learned_in_words;
  if (RUNS.length > 1) body.append(el("div", { cls: "controls" }, select("run", RUNS.filter(tells).map((r) => [r.run_id, r.title]), learnedView.run, (v) => { learnedView.run = v; redraw(); })));
  if (found.length || run.said_less) body.append(el("div", { cls: "grid two" }, found.map((entry) => clusterCard(entry, run)), run.said_less ? lessCard(run.said_less) : null));
  if (found.length) body.append(el("p", { cls: "note" }, `Found after step ${found[0].step} without naming anything in advance: features that the model learned to say beyond chance, gathered by where they are active on the probe texts. Marked tokens are those that these features express.`));
  const counted = run.beyond_chance;
  if (counted) body.append(el("p", { cls: found.length ? "note" : "lead" }, `${counted[0].toUpperCase()}${counted.slice(1)}.`));
  if (run.alarms.length) body.append(el("div", { cls: "card alarms" }, el("h3", {}, "Alarms"), table([el("th", { cls: "num" }, "step"), el("th", {}, "alarm"), el("th", {}, "in its own answers")],
    run.alarms.map((alarm) => el("tr", {}, el("td", { cls: "num" }, alarm.step), el("td", {}, el("span", { cls: "alarm", "aria-hidden": "true" }, "▼ "), alarm.text), el("td", {}, alarm.answers)))),
    el("p", { cls: "quiet small" }, "When the alarm came, and from which step on the share of the model's own answers that show the concept was a tenth above its first reading.")));
}
