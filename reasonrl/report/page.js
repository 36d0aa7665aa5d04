"use strict";
// Every text of a run reaches the page as a text node, never as HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const COLORS = ["#3b78e0", "#e8710a", "#12a150", "#d33a4a", "#8e5bd0",
                "#8a6d52", "#d957a8", "#6b7683", "#a3a31c", "#16a5bd"];
// Of the first ten runs, of the next ten, and so on; a curve of one point has no dash.
const DASHES = ["solid", "dash", "dot"], SYMBOLS = ["circle", "square", "diamond"];
const TICKED_AT_FIRST = COLORS.length * DASHES.length;  // more look alike
const MOST_IN_LEGEND = 12;  // the table, and the pointer on a line, tell it too
const MAIN = "after/maj@1", GAIN = "gain/maj@1";
const PARTS = ["algorithm", "reward", "model", "init", "dataset", "seed"];

const $ = id => document.getElementById(id);
const distinct = values => [...new Set(values)];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// As Python sorts: 10 after 9, and what isn't there comes last, whichever way.
function compare(a, b, descending) {
  if (a === b) return 0;
  if (a === null || a === undefined || a === "") return 1;
  if (b === null || b === undefined || b === "") return -1;
  const order = typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
  return descending ? -order : order;
}
const sorted = values => [...values].sort((a, b) => compare(a, b, false));

// ---------------------------------------------------------------- numbers

const percent = value =>
  Number.isFinite(value) ? (100 * value).toFixed(1).replace(/^-(0\.0)$/, "$1") : "?";
const signed = value => (value > 0 ? "+" : "") + percent(value);
const interval = e => `[${percent(e.low)}, ${percent(e.high)}]`;
const exact = e => `${e.value}, 95% interval ${e.low} to ${e.high}, of ${e.n} questions`;
const mean = values => values.reduce((a, b) => a + b) / values.length;
const isDifference = key => /^(gain|gap|against)\b/.test(key);
const established = e => Number.isFinite(e.p_value)
  ? e.p_value < 0.05 : e.n > 1 && (e.low > 0 || e.high < 0);

function estimateCell(key, e) {
  const cell = element("td", {className: "number"});
  if (!e) return cell;
  const bold = isDifference(key) && established(e);
  const colour = bold ? (e.value > 0 ? "right" : "wrong") : "";
  cell.append(element(bold ? "b" : "span", {className: colour}, `${percent(e.value)}%`), " ",
              element("small", {}, interval(e)));
  cell.title = exact(e);
  return cell;
}

// ---------------------------------------------------------------- the runs and which are chosen

const asked = RUNS.filter(run => run.overrides !== null);
const FIRST_OF_ALL = asked.length ? asked : RUNS;
const ticked = new Set(FIRST_OF_ALL.slice(0, TICKED_AT_FIRST).map(run => run.name));

// A run's name without the hash at its end, where that and its settings tell it from all others.
const unhashed = run => run.name.replace(/-[0-9a-f]{8}$/, "");
const labelled = name => run => [name(run), ...run.settings].join(" ");
const shared = RUNS.map(labelled(unhashed)).filter((name, i, all) => all.indexOf(name) !== i);
const shortName = run => shared.includes(labelled(unhashed)(run)) ? run.name : unhashed(run);
const label = labelled(shortName);

// What the look of a run stands for: itself, or its algorithm and so on.
const by = () => $("by").value;
const stoodFor = run => by() === "run" ? run.name : run[by()] ?? `no ${by()}`;
let looks;
function chooseLooks() {
  const order = by() === "run" ? [...asked, ...RUNS].map(stoodFor) : sorted(RUNS.map(stoodFor));
  looks = new Map(distinct(order).map((name, i) => {
    const j = Math.floor(i / COLORS.length) % DASHES.length;
    return [name, {color: COLORS[i % COLORS.length], dash: DASHES[j], symbol: SYMBOLS[j]}];
  }));
}
chooseLooks();
$("by").onchange = () => { chooseLooks(); showTable(); drawAll(); };

function swatch(run) {
  const {color, dash} = looks.get(stoodFor(run));
  const made = element("span", {className: `swatch ${dash}`});
  made.style.color = color;
  return made;
}
const overridesOf = run => run.overrides === null ? "needed by others" : run.overrides.join(" ");

const FILTERS = ["algorithm", "reward", "model"];
const selects = {};
for (const part of FILTERS) {
  selects[part] = element("select", {name: part, onchange: filtersChanged},
    element("option", {value: ""}, `any ${part}`),
    ...sorted(distinct(RUNS.map(run => run[part]).filter(Boolean)))
      .map(name => element("option", {value: name}, name)));
  $("all").before(selects[part]);
}
$("text").oninput = filtersChanged;

function isListed(run) {
  const text = [run.name, overridesOf(run), run.state, run.why, run.init, run.dataset,
                `seed=${run.seed}`].join(" ").toLowerCase();
  return $("text").value.toLowerCase().split(/\s+/).every(word => text.includes(word))
    && FILTERS.every(part => !selects[part].value || run[part] === selects[part].value);
}

function filtersChanged() { showMatrices(); showTable(); drawAll(); }

function tickListed(on) {
  for (const run of RUNS.filter(isListed)) on ? ticked.add(run.name) : ticked.delete(run.name);
  showTable();
  drawAll();
}
$("all").onclick = () => tickListed(true);
$("none").onclick = () => tickListed(false);

// ---------------------------------------------------------------- one run against another

for (const run of RUNS.filter(run => run.correct)) {
  $("against").append(element("option", {value: run.name}, label(run)));
}
$("against").parentNode.hidden = $("against").length < 3;
$("against").onchange = showTable;

// McNemar's exact test: how probable so unequal numbers of questions gained and lost are by chance.
function signTest(gained, lost) {
  const n = gained + lost;
  let tail = 0;
  for (let k = 0, log = -n * Math.LN2; k <= Math.min(gained, lost); k++) {
    tail += Math.exp(log);
    log += Math.log(n - k) - Math.log(k + 1);
  }
  return Math.min(1, 2 * tail);
}

// What a run gains on that one, paired by question, with the interval of a normal distribution.
function difference(run) {
  const other = RUNS.find(one => one.name === $("against").value);
  if (!other || other === run || !run.correct || run.problems !== other.problems) return undefined;
  const each = [...run.correct].map((right, i) => right - other.correct[i]);
  const value = mean(each);
  const width = 1.96 * Math.sqrt(mean(each.map(d => (d - value) ** 2)) / each.length);
  const p_value = signTest(each.filter(d => d > 0).length, each.filter(d => d < 0).length);
  return {value, low: value - width, high: value + width, n: each.length, p_value};
}

// ---------------------------------------------------------------- the table

// Of what is estimated, the columns; the rest unfolds. Of pass@k the first and the last k.
function estimateColumns() {
  const keys = new Set();
  for (const run of RUNS) {
    const names = Object.keys(run.estimates);
    for (const kind of ["after", "before"]) {
      const ks = names.filter(n => n.startsWith(`${kind}/pass@`)).map(n => +n.split("@")[1]);
      for (const k of [Math.min(...ks), Math.max(...ks)]) keys.add(`${kind}/pass@${k}`);
      for (const n of names) if (n.startsWith(`${kind}/maj@`)) keys.add(n);
    }
    for (const n of ["gain/maj@1", "gap/maj@1"]) keys.add(n);
    for (const n of ["auroc", "accuracy", "calibration_error"]) keys.add(`validation/${n}`);
  }
  const order = ["after/maj@1", "gain/maj@1", "before/maj@1", "after/maj", "after/pass",
                 "before/maj", "before/pass", "gap", "validation"];
  const rank = key => order.findIndex(start => key.startsWith(start));
  return [...keys].filter(key => RUNS.some(run => key in run.estimates))
    .sort((a, b) => rank(a) - rank(b) || compare(a, b, false));
}

// What differs stands before the numbers.
function columns() {
  const estimates = ESTIMATES.map(key => ({key, estimate: run => run.estimates[key]}));
  if ($("against").value) {
    const other = RUNS.find(run => run.name === $("against").value);
    estimates.splice(1, 0, {key: "against", head: `against ${label(other)}`, estimate: difference});
  }
  const parts = PARTS.map(key => ({key, value: run => run[key]}));
  const differs = part => distinct(FIRST_OF_ALL.map(part.value)).length > 1;
  return [
    {key: "name", value: shortName, cell: nameCell},
    {key: "state", value: run => run.state, cell: stateCell},
    ...parts.filter(differs),
    ...RUNS.some(run => run.settings.length)
      ? [{key: "settings", value: run => run.settings.join(" ")}] : [],
    ...estimates.map(column => ({
      ...column, value: run => column.estimate(run)?.value, descending: true,
      cell: run => estimateCell(column.key, column.estimate(run)),
    })),
    ...parts.filter(part => !differs(part)),
    {key: "attempt", value: run => run.attempt || null},
    {key: "overrides", value: overridesOf,
     cell: run => element("td", {className: run.overrides === null ? "none" : ""},
                          overridesOf(run))},
  ];
}
const ESTIMATES = estimateColumns();
let order = {key: MAIN, descending: true};  // without it as the sweep has them
const unfolded = new Set();

function nameCell(run) {
  const tick = element("input", {type: "checkbox", checked: ticked.has(run.name),
    ariaLabel: `plot ${run.name}`,
    onchange: () => {
      tick.checked ? ticked.add(run.name) : ticked.delete(run.name);
      showCount();
      drawAll();
    }});
  const unfold = element("button", {type: "button", id: `unfold-${run.name}`, title: run.name,
    onclick: () => {
      unfolded.has(run.name) ? unfolded.delete(run.name) : unfolded.add(run.name);
      showTable();
    }}, `${unfolded.has(run.name) ? "▾" : "▸"} ${shortName(run)}`);
  return element("td", {className: "name"}, tick, swatch(run), unfold);
}

function stateMark(state, text = state) {
  return element("span", {className: `state ${state.replaceAll(" ", "-")}`}, text);
}

function stateCell(run) {
  const cell = element("td", {className: run.why ? "wide" : ""}, stateMark(run.state));
  if (run.heartbeat) cell.title = `last sign of life ${run.heartbeat}`;
  if (run.why) cell.append(element("div", {className: "why", title: run.why}, run.why));
  return cell;
}

function showTable() {
  const shown = columns(), sorting = shown.find(column => column.key === order.key);
  const head = shown.map(column => {
    const sort = () => {
      const again = sorting === column;
      order = {key: column.key, descending: again ? !order.descending : !!column.descending};
      showTable();
    };
    const direction = sorting !== column ? "none" : order.descending ? "descending" : "ascending";
    const className = ["name", "against"].includes(column.key) ? column.key : "";
    return element("th", {className, scope: "col", ariaSort: direction},
      element("button", {type: "button", id: `sort-${column.key}`, onclick: sort},
              column.head ?? column.key.replace("/", " "),
              {none: "", descending: " ▼", ascending: " ▲"}[direction]));
  });
  const listed = RUNS.filter(isListed);
  if (sorting) {
    const values = new Map(listed.map(run => [run, sorting.value(run)]));
    listed.sort((a, b) => compare(values.get(a), values.get(b), order.descending));
  }
  const rows = [];
  for (const run of listed) {
    const cells = shown.map(column => column.cell
      ? column.cell(run) : element("td", {}, String(column.value(run) ?? "")));
    rows.push(element("tr", {className: "run", id: `run-${run.name}`}, ...cells));
    if (unfolded.has(run.name)) rows.push(details(run, shown.length));
  }
  const focused = document.activeElement.id;
  $("runs").tHead.replaceChildren(element("tr", {}, ...head));
  $("runs").tBodies[0].replaceChildren(...rows);
  if (focused) $(focused)?.focus();  // who sorts by keyboard stays where he is
  showCount();
}

function showCount() {
  const listed = RUNS.filter(isListed);
  const plotted = listed.filter(run => ticked.has(run.name)).length;
  $("count").textContent = `${listed.length} of ${RUNS.length} listed, ${plotted} of them ticked`;
}

function details(run, width) {
  const estimates = Object.keys(run.estimates).map(key => element("tr", {},
    element("td", {}, key.replace("/", " ")), estimateCell(key, run.estimates[key])));
  const why = run.why ? [element("p", {className: "why"}, run.why)] : [];
  const parts = [
    element("div", {className: "all"}, element("code", {}, run.name), ...why),
    element("div", {}, element("h3", {}, "estimates"), estimates.length
      ? element("table", {}, ...estimates) : element("p", {className: "none"}, "none yet")),
    element("div", {className: "completions"}, ...viewer(run)),
  ];
  return element("tr", {className: "details"},
    element("td", {colSpan: width}, element("div", {className: "parts"}, ...parts)));
}

// What a run wrote: its greedy completions of the evaluation, and its last rollouts.
const VERDICTS = {
  "right and wrong": () => true, "right": c => c.correct, "wrong": c => !c.correct,
  "no answer": c => c.answer === null,
};
function viewer(run) {
  const table = element("table"), count = element("small"), choose = (name, options) =>
    element("select", {ariaLabel: name, onchange: show},
      ...options.map(option => element("option", {value: option}, option)));
  const of = choose("which completions", distinct(run.completions.map(c => c.of)));
  const verdict = choose("verdict", Object.keys(VERDICTS));
  const search = element("input", {type: "search", placeholder: "text …", oninput: show});
  function show() {
    const from = run.completions.filter(c => c.of === of.value);
    const chosen = from.filter(c => VERDICTS[verdict.value](c)
      && `${c.problem_id} ${c.question ?? ""} ${c.text}`.toLowerCase()
        .includes(search.value.toLowerCase()));
    count.textContent = `${chosen.length} of the first ${from.length}`;
    table.replaceChildren(...chosen.map(completionRow));
  }
  show();
  return [element("h3", {}, "completions ", count), ...run.completions.length
    ? [element("p", {className: "controls"}, of, verdict, search), table]
    : [element("p", {className: "none"}, "none")]];
}

function completionRow(c) {
  const score = Number.isFinite(c.score) ? [element("div", {}, `score ${+c.score.toFixed(4)}`)] : [];
  return element("tr", {},
    element("td", {}, c.problem_id),
    element("td", {}, ...c.question ? [element("p", {className: "quiet"}, c.question)] : [],
            element("pre", {}, c.text)),
    element("td", {}, element("span", {className: c.correct ? "right" : "wrong"},
                              `${c.correct ? "✓" : "✗"} ${c.answer ?? "no answer"}`),
            ...c.gold && !c.correct ? [element("div", {}, `right: ${c.gold}`)] : [], ...score));
}

// ---------------------------------------------------------------- files

function save(name, rows) {
  const quoted = value => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const text = rows.map(row => row.map(v => quoted(String(v ?? ""))).join(",") + "\n").join("");
  const link = element("a", {href: URL.createObjectURL(new Blob([text], {type: "text/csv"})),
                             download: `${name}.csv`});
  link.click();
  URL.revokeObjectURL(link.href);
}

// All that is estimated of the listed runs, to the last digit.
$("save").onclick = () => {
  const listed = RUNS.filter(isListed);
  const keys = distinct(listed.flatMap(run => Object.keys(run.estimates)));
  const parts = ["low", "high", "n"];
  save("runs", [
    ["name", "state", ...PARTS, "settings", ...keys.flatMap(k => [k, ...parts.map(p => `${k} ${p}`)])],
    ...listed.map(run => [run.name, run.state, ...PARTS.map(part => run[part]),
      run.settings.join(" "),
      ...keys.flatMap(k => ["value", ...parts].map(p => run.estimates[k]?.[p]))]),
  ]);
};

// ---------------------------------------------------------------- the matrices

// A table for each model and dataset: algorithms × rewards. A row tells where its runs started if
// not all of that algorithm started alike, and their settings: what is left is the seed.
function showMatrices() {
  const policies = RUNS.filter(run => run.makes_policy), runs = policies.filter(isListed);
  const alike = run => policies.filter(other => other.algorithm === run.algorithm);
  const start = run => distinct(alike(run).map(r => r.init)).length > 1 ? ` from ${run.init}` : "";
  const named = run => [run.algorithm + start(run), ...run.settings].join("\n");
  const row = new Map(runs.map(run => [run, named(run)]));
  const place = run => `${run.model} · ${run.dataset}`;
  $("results").hidden = !policies.length;
  $("matrices").replaceChildren(...distinct(runs.map(place)).map(where => {
    const here = runs.filter(run => place(run) === where);
    const all = here.map(run => run.estimates[MAIN]?.value).filter(Number.isFinite);
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const rewards = sorted(distinct(here.map(run => run.reward)));
    const head = rewards.map(reward => element("th", {}, reward ?? "no reward"));
    const body = sorted(distinct(here.map(run => row.get(run)))).map(name => element("tr", {},
      element("th", {}, name.split("\n")[0], ...name.split("\n").slice(1).map(small)),
      ...rewards.map(reward => matrixCell(
        here.filter(run => row.get(run) === name && run.reward === reward), least, most))));
    return element("div", {}, element("h3", {}, where), element("table", {},
      element("thead", {}, element("tr", {}, element("th"), ...head)),
      element("tbody", {}, ...body)));
  }));
}
const small = text => element("small", {}, text);

function matrixCell(runs, least, most) {
  const cell = element("td");
  const known = runs.filter(run => Number.isFinite(run.estimates[MAIN]?.value));
  const values = known.map(run => run.estimates[MAIN].value);
  if (values.length) {
    const value = mean(values), n = values.length;
    cell.append(element("b", {}, `${percent(value)}%`));
    if (n === 1) cell.append(small(interval(known[0].estimates[MAIN])));
    else {
      const seeds = distinct(known.map(run => run.seed)).length === n ? "seeds" : "runs";
      const range = [Math.min(...values), Math.max(...values)].map(percent).join(" to ");
      cell.append(small(`mean of ${n} ${seeds}`), small(`range ${range}`));
    }
    const gains = known.map(run => run.estimates[GAIN]).filter(Boolean);
    if (gains.length === n) {
      cell.append(small(`gain ${signed(mean(gains.map(gain => gain.value)))}`
                        + (n === 1 ? ` ${interval(gains[0])}` : "")));
    }
    const share = most > least ? (value - least) / (most - least) : 0.5;
    cell.style.background = `color-mix(in srgb, var(--accent) ${5 + 35 * share}%, var(--back))`;
    cell.title = known.map(run => `${run.name}: ${exact(run.estimates[MAIN])}`).join("\n");
  }
  for (const state of distinct(runs.filter(run => !known.includes(run)).map(run => run.state))) {
    const n = runs.filter(run => !known.includes(run) && run.state === state).length;
    cell.append(stateMark(state, n > 1 ? `${n} ${state}` : state));
  }
  return cell;
}

// ---------------------------------------------------------------- the plots

const METRICS = sorted(distinct(RUNS.flatMap(run => Object.keys(run.curves))));
const FIRST = METRICS.includes(DATA.validation) ? DATA.validation : METRICS[0];
const having = name => RUNS.filter(run => ticked.has(run.name) && run.curves[name]).length;
const SECOND = METRICS.filter(name => name !== FIRST && !/^(eval|time)\//.test(name))
  .sort((a, b) => having(b) - having(a) || /loss$/.test(b) - /loss$/.test(a))[0];
const plots = [];

const hasRollouts = RUNS.some(run => Object.values(run.curves).some(curve => curve.rollouts));
for (const name of hasRollouts ? ["step", "rollouts"] : ["step"]) {
  $("x").append(element("option", {value: name}, name));
}

// An exponential moving average that starts unbiased; a gap stays a gap.
function smooth(values, weight) {
  if (!weight) return values;
  let sum = 0, norm = 0;
  return values.map(value => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

function addPlot(metric) {
  const select = element("select", {ariaLabel: "metric", onchange: () => draw(plot)},
    ...METRICS.map(name => element("option", {value: name}, name)));
  select.value = metric;
  const log = element("input", {type: "checkbox", onchange: () => draw(plot)});
  const note = element("span", {className: "quiet"});
  const save = element("button", {type: "button", title: "the values of these lines"}, "CSV");
  const close = element("button", {type: "button", title: "close this plot", onclick: () => {
    plots.splice(plots.indexOf(plot), 1);
    Plotly.purge(plot.chart);
    plot.box.remove();
  }}, "×");
  const chart = element("div", {className: "chart"}), legend = element("div", {className: "legend"});
  const box = element("div", {className: "plot"},
    element("div", {className: "controls"}, select, element("label", {}, log, " log"), note, save, close),
    chart, legend);
  const plot = {select, log, note, save, chart, legend, box};
  plots.push(plot);
  $("plots").append(box);
  draw(plot);
  new ResizeObserver(() => plots.includes(plot) && Plotly.Plots.resize(chart)).observe(chart);
}

// Runs that differ in their seed alone, in the order of their first ones.
function bySeeds(runs) {
  const groups = new Map();
  for (const run of runs) {
    const key = JSON.stringify([...PARTS.filter(p => p !== "seed").map(p => run[p]), run.settings]);
    groups.set(key, [...groups.get(key) ?? [], run]);
  }
  return [...groups.values()];
}
$("banded").hidden = bySeeds(RUNS).every(group => group.length < 2);

// A curve's value at x, on the straight line between its neighbours; null beyond its ends.
function valueAt(xs, ys, x) {
  const i = xs.findIndex(one => one >= x);
  if (i < 0 || (i === 0 && xs[0] > x)) return null;
  if (xs[i] === x) return ys[i];
  if (ys[i] === null || ys[i - 1] === null) return null;
  return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1]);
}

// The mean of curves, and their range, where all of them have a value.
function band(curves) {
  const xs = distinct(curves.flatMap(curve => curve.x)).sort((a, b) => a - b), made = [];
  for (const x of xs) {
    const values = curves.map(curve => valueAt(curve.x, curve.y, x));
    if (!values.includes(null)) {
      made.push({x, mean: mean(values), low: Math.min(...values), high: Math.max(...values)});
    }
  }
  return made;
}

// The traces of runs that differ in their seed alone: their mean, within the range of all.
function seedTraces(runs, metric, x, weight) {
  const {color, dash} = looks.get(stoodFor(runs[0]));
  const points = band(runs.map(run => ({x: run.curves[metric][x],
                                        y: smooth(run.curves[metric].values, weight)})));
  const xs = points.map(p => p.x), of = `mean of ${runs.length} seeds`;
  const edge = {type: "scatter", mode: "lines", x: xs, line: {width: 0}, hoverinfo: "skip"};
  const name = runs[0].name.replace(/-s\d+(-[0-9a-f]{8})?$/, "");
  return [
    {...edge, name: `${name} low`, y: points.map(p => p.low)},
    {...edge, name: `${name} high`, y: points.map(p => p.high), fill: "tonexty",
     fillcolor: `${color}33`},
    {type: "scatter", mode: points.length <= 60 ? "lines+markers" : "lines", name, x: xs,
     y: points.map(p => p.mean), line: {color, dash, width: 2}, marker: {size: 6},
     meta: [name, ...runs[0].settings].join(" "),
     customdata: points.map(p => [p.low, p.high]),
     hovertemplate: `<b>%{y}</b>, ${of}<br>%{customdata[0]} to %{customdata[1]}<br>`
       + `${x} %{x}<br>%{meta}<extra></extra>`},
  ];
}

function draw(plot) {
  const metric = plot.select.value, x = $("x").value, weight = +$("smoothing").value;
  const chosen = RUNS.filter(run => ticked.has(run.name) && isListed(run));
  const shown = chosen.filter(run => run.curves[metric]?.[x]);
  const groups = $("seeds").checked ? bySeeds(shown) : shown.map(run => [run]);
  const traces = groups.flatMap(([run, ...others]) => {
    if (others.length) return seedTraces([run, ...others], metric, x, weight);
    const curve = run.curves[metric], {color, dash, symbol} = looks.get(stoodFor(run));
    const sparse = curve.values.length <= 60 || curve.values.includes(null);
    return {
      type: "scatter", mode: sparse ? "lines+markers" : "lines", name: run.name,
      x: curve[x], y: smooth(curve.values, weight),
      line: {color, dash, width: 1.6}, marker: {size: 6, symbol}, meta: label(run),
      hovertemplate: `<b>%{y}</b><br>${x} %{x}<br>%{meta}<extra></extra>`,
    };
  });
  const missing = chosen.length - shown.length;
  plot.note.textContent = missing
    ? `${missing} of the ${chosen.length} ${missing === 1 ? "has" : "have"} no such curve` : "";
  plot.save.onclick = () => save(metric.replace("/", "-"), [
    ["run", x, metric],
    ...shown.flatMap(run => run.curves[metric][x].map((at, i) =>
      [run.name, at, run.curves[metric].values[i]])),
  ]);
  const kinds = new Map(groups.map(([run]) => [stoodFor(run), run]));
  plot.legend.replaceChildren(...[...kinds].filter(() => kinds.size <= MOST_IN_LEGEND).map(
    ([name, run]) => element("span", {}, swatch(run), by() === "run" ? label(run) : name)));
  const style = getComputedStyle(document.body);
  const [front, line] = [style.color, style.getPropertyValue("--line")];
  const axis = {gridcolor: line, linecolor: line, zeroline: false, automargin: true};
  Plotly.react(plot.chart, traces, {
    margin: {l: 52, r: 12, t: 12, b: 42},
    paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: {family: "system-ui, sans-serif", size: 12, color: front},
    hovermode: "closest", hoverlabel: {namelength: -1, align: "left"},
    showlegend: false, modebar: {bgcolor: "transparent", color: front},
    xaxis: {...axis, title: {text: x}},
    yaxis: {...axis, type: plot.log.checked ? "log" : "linear"},
    uirevision: `${metric} ${x} ${plot.log.checked}`,  // a zoom outlives ticks and smoothing
  }, {displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"]});
}

function drawAll() { for (const plot of plots) draw(plot); }

$("x").onchange = $("seeds").onchange = drawAll;
$("smoothing").oninput = () => {
  $("smoothness").textContent = +$("smoothing").value ? $("smoothing").value : "none";
  drawAll();
};
$("add").onclick = () =>
  addPlot(METRICS.find(name => !plots.some(plot => plot.select.value === name)) ?? FIRST);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

// ---------------------------------------------------------------- the rest

$("command").textContent = DATA.command;
$("note").textContent = DATA.note;
$("differences").textContent = DATA.differences;
for (const time of ["created", "made"]) {
  $(time).textContent = DATA[time].replace("T", " ").replace(/\+00:00$/, " UTC");
}
if (DATA.points_per_line) {
  $("thinned").textContent = `· lines of more than ${DATA.points_per_line} points are thinned to `
    + "their first, last, lowest and highest ones";
}
for (const state of distinct(RUNS.map(run => run.state))) {
  const n = RUNS.filter(run => run.state === state).length;
  $("states").append(stateMark(state, `${n} ${state}`));
}
showMatrices();
showTable();
if (METRICS.length) [FIRST, SECOND].filter(Boolean).forEach(addPlot);
else $("plots").append(element("p", {className: "none"}, "No run has logged anything yet."));
$("add").disabled = !METRICS.length;
