// The curves of all runs, histograms over time, costs, and the config.

// title, metrics (the first that a run has, or all where `every`), the metrics of a band of its own, and whether the
// curve is drawn as it is.
const CURVES = [
  { title: "reward", first: ["reward"] },
  { title: "held-out accuracy", every: /^evaluation\/.*\/avg@\d+$/, exact: true },
  { title: "response length, with its 10th to 90th percentile", first: ["response_length"], band: ["response_length/p10", "response_length/p90"] },
  { title: "share cut off at the limit", first: ["cut_off"] },
  { title: "groups: all right, mixed, all wrong", every: /^groups\/(all_right|mixed|all_wrong)$/ },
  { title: "loss", first: ["loss"] },
  { title: "entropy, nats", first: ["update/entropy", "entropy"] },
  { title: "diversity, distinct 4-grams", first: ["diversity"] },
  { title: "temperature", first: ["temperature"], exact: true },
  { title: "mean |trainer - sampler|, nats", first: ["update/sampler_trainer_gap"] },
  { title: "norm of the gradient", first: ["update/grad_norm", "grad_norm"] },
  { title: "share of clipped ratios", every: /^update\/clip_(above|below)$/ },
  { title: "tokens/s", first: ["tokens_per_s"] },
  { title: "device-hours", first: ["cost/device_hours"], exact: true },
];
const COSTS = ["rollout", "verdicts", "update", "checkpoint", "evaluation"];

function curve(run, name, colour, band) {
  const of = key => run.metrics[key];
  const bounds = band && band.every(of) ? { low: of(band[0]), high: of(band[1]) } : {};
  return { name, colour, x: run.steps, y: of(name), ...bounds };
}

const KINDS = { GRPO: run => "reward" in run.metrics, SFT: run => !("reward" in run.metrics) };
const several = Object.values(KINDS).every(is => data.runs.some(is));

// All runs of GRPO in one panel, and all of SFT, where each gives one curve; where each gives several, a panel a run.
function curves({ title, first, every, band, exact }) {
  if (first) return Object.entries(KINDS).flatMap(([kind, is]) => {
    const named = data.runs.map((run, i) => {
      const name = is(run) && first.find(n => run.metrics[n]?.some(v => v != null));
      return name && { ...curve(run, name, colour(i), band), name: data.runs.length > 1 ? run.name : name, exact, stages: run.stages };
    }).filter(Boolean);
    return named.length ? [lines(several ? `${title}: ${kind}` : title, named, named.length === 1 ? named[0].stages : [])] : [];
  });
  return data.runs.flatMap(run => {
    const names = Object.keys(run.metrics).filter(name => every.test(name) && run.metrics[name].some(v => v != null)).sort();
    const label = data.runs.length > 1 ? `${title}: ${run.name}` : title;
    return names.length ? [lines(label, names.map((name, i) => ({ ...curve(run, name, colour(i)), exact })), run.stages)] : [];
  });
}

function histograms(run) {
  const label = data.runs.length > 1 ? `: ${run.name}` : "", panels = [];
  const rows = pattern => Object.keys(run.metrics).map(name => [name.match(pattern), run.metrics[name]])
    .filter(([match]) => match).sort(([a], [b]) => a[1] - b[1]);
  const rates = rows(/^pass_rate\/(\d+)_of_(\d+)$/), lengths = rows(/^response_length\/part_(\d+)_of_(\d+)$/);
  if (rates.length) panels.push(heat(`pass rates of groups over time${label}`, run.steps, rates.map(r => r[1]),
    rates.map(([m]) => `${m[1]}/${m[2]}`), run.stages, "#2e6fd0", "right of a group's responses; darker: more groups"));
  if (lengths.length) panels.push(heat(`response lengths over time${label}`, run.steps, lengths.map(r => r[1]),
    lengths.map(([m]) => run.stages.length ? percent(m[1] / m[2]) : `≤${short(Math.floor(run.limit * m[1] / m[2]))}`), run.stages, "#d9722b",
    run.stages.length ? "share of the stage's limit of tokens; darker: more responses" : "tokens; darker: more responses"));
  const verdicts = Object.keys(run.metrics).filter(name => name.startsWith("verdict/")).sort();
  if (verdicts.length) panels.push(stacked(`verdicts${label}`, verdicts.map((name, i) => ({ name: name.slice(8), colour: colour(i), x: run.steps, y: run.metrics[name] })), run.stages));
  const spent = COSTS.filter(name => run.metrics[`seconds/${name}`]?.some(v => v > 0.001));
  if (spent.length) panels.push(stacked(`seconds a step${label}`, spent.map((name, i) => ({ name, colour: colour(i), x: run.steps, y: run.metrics[`seconds/${name}`] })), run.stages));
  return panels;
}

function overview() {
  const panels = el("div", { class: "panels" }, CURVES.flatMap(curves), data.runs.flatMap(histograms));
  const names = [...new Set(data.runs.flatMap(run => Object.keys(run.metrics)))].sort();
  const more = select("metric", [["", "another metric ..."], ...names.map(name => [name, plain(name)])], () => {
    if (more.value) panels.append(...curves({ title: more.value, first: [more.value] }));
    more.value = "";
  });
  const facts = data.runs.map((run, i) => el("div", {}, swatch(colour(i)), el("b", {}, plain(run.name)), ` ${run.last} steps`,
    run.stages.length ? `; stages ${run.stages.map(s => `${plain(s.name)} from step ${s.step}`).join(", ")}` : "",
    run.every > 1 ? `; a point is the mean of ${run.every} steps` : ""));
  section("curves", "Curves", facts, el("p", { class: "dim" }, "Faint: each step. Line and band: mean and standard deviation over a tenth of the run."), panels,
    el("div", { class: "bar" }, more));
}

function configs() {
  const body = el("tbody"), all = el("input", { type: "checkbox", name: "all keys" }), words = el("input", { type: "search", name: "config search", placeholder: "key or value" });
  const draw = () => body.replaceChildren(...data.config
    .filter(row => all.checked || row.values.some(value => value !== row.default))
    .filter(row => [row.key, row.default, ...row.values].join(" ").includes(words.value))
    .map(row => el("tr", {}, el("td", {}, shown(row.key)), el("td", { class: "dim" }, shown(row.default)),
      row.values.map(value => el("td", { class: value === row.default ? "dim" : "changed" }, shown(value))))));
  all.addEventListener("change", draw);
  words.addEventListener("input", draw);
  section("config", "Config", el("div", { class: "bar" }, el("label", {}, all, " all keys, not only what differs from configs/base.py"), words),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["key", "default", ...data.runs.map(run => plain(run.name))].map(name => el("th", {}, name)))), body)));
  draw();
}
