// Charts over steps, as inline SVG: lines with bands, stacked shares, histograms over time.

const BOX = { width: 420, height: 190, left: 46, right: 8, top: 14, bottom: 20 };

function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough) || 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function axes(x, y, stages) {
  const at = value => BOX.left + (value - x[0]) / (x[1] - x[0] || 1) * (BOX.width - BOX.left - BOX.right);
  const up = value => BOX.height - BOX.bottom - (value - y[0]) / (y[1] - y[0] || 1) * (BOX.height - BOX.top - BOX.bottom);
  const node = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  for (const value of ticks(...y, 4)) {
    node.append(svg("line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: up(value), y2: up(value), stroke: "#e6e9ee" }),
      svg("text", { x: BOX.left - 4, y: up(value) + 3, "text-anchor": "end" }, short(value)));
  }
  for (const value of ticks(...x, 6).filter(Number.isInteger))
    node.append(svg("text", { x: at(value), y: BOX.height - 6, "text-anchor": "middle" }, short(value)));
  for (const stage of stages)
    node.append(svg("line", { class: "stage", x1: at(stage.step), x2: at(stage.step), y1: BOX.top, y2: BOX.height - BOX.bottom, stroke: "#8a93a1", "stroke-dasharray": "3 3" }),
      svg("text", { x: at(stage.step) + 2, y: BOX.top - 4 }, plain(stage.name).slice(0, 14)));
  return { node, at, up };
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${number(value / 1e6, 3)}M`;
  if (size >= 1e4) return `${number(value / 1e3, 3)}k`;
  return size && size < 1e-3 ? value.toExponential(1) : number(value, 4);
}

// The mean of the values before and after within a tenth of the curve, and their standard deviation as a band.
function smoothed(values, exact) {
  const half = Math.max(1, Math.round(values.filter(v => v != null).length / 20));
  return values.map((value, i) => {
    if (value == null) return null;
    if (exact) return { mean: value, low: value, high: value };
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter(v => v != null);
    const mean = near.reduce((a, b) => a + b, 0) / near.length;
    const spread = Math.sqrt(near.reduce((a, b) => a + (b - mean) ** 2, 0) / near.length);
    return { mean, low: mean - spread, high: mean + spread };
  });
}

function path(points) {
  let text = "", pen = "M";
  for (const [x, y] of points) { text += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`; pen = "L"; }
  return text;
}

function extent(series, key) {
  const values = series.flatMap(one => one[key]).filter(v => v != null);
  return [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
}

// series: {name, colour, x, y, low?, high?, exact?}; low and high are a band of their own in place of the smoothed curve's.
function lines(title, series, stages, note) {
  for (const one of series) {
    one.smooth = smoothed(one.y, one.exact);
    one.bottom = one.y.map((v, i) => v == null ? null : one.low ? one.low[i] : one.smooth[i].low);
    one.top = one.y.map((v, i) => v == null ? null : one.high ? one.high[i] : one.smooth[i].high);
    one.all = [...one.y, ...one.bottom, ...one.top];
  }
  let [low, high] = extent(series, "all");
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) { low -= Math.abs(low) / 10 || 0.5; high += Math.abs(high) / 10 || 0.5; }
  if (low < 0 && extent(series, "y")[0] >= 0) low = 0;
  const { node, at, up } = axes(extent(series, "x"), [low, high], stages), clamp = v => up(Math.max(low, v));
  for (const one of series) {
    const known = one.x.map((_, i) => i).filter(i => one.y[i] != null && one.bottom[i] != null && one.top[i] != null);
    const edge = [...known.map(i => [at(one.x[i]), clamp(one.top[i])]), ...known.slice().reverse().map(i => [at(one.x[i]), clamp(one.bottom[i])])];
    node.append(svg("path", { class: "band", d: `${path(edge)}Z`, fill: one.colour, opacity: .16 }),
      svg("path", { d: path(known.map(i => [at(one.x[i]), up(one.y[i])])), fill: "none", stroke: one.colour, opacity: .35 }),
      svg("path", { class: "curve", d: path(known.map(i => [at(one.x[i]), up(one.smooth[i].mean)])), fill: "none", stroke: one.colour, "stroke-width": 1.8 }));
    if (known.length === 1) node.append(svg("circle", { cx: at(one.x[known[0]]), cy: up(one.y[known[0]]), r: 2.5, fill: one.colour }));
  }
  const names = series.map(one => ({ ...one, value: i => number(one.y[i]) }));
  return panel(title, node, at, names, note);
}

// shares: {name, colour, x, y}, drawn one above the other.
function stacked(title, shares, stages, note) {
  const x = shares[0].x, sums = x.map((_, i) => shares.reduce((sum, one) => sum + (one.y[i] || 0), 0));
  const { node, at, up } = axes(extent(shares, "x"), [0, Math.max(...sums) || 1], stages);
  let below = x.map(() => 0);
  for (const one of shares) {
    const above = below.map((v, i) => v + (one.y[i] || 0));
    const edge = [...x.map((s, i) => [at(s), up(above[i])]), ...x.map((s, i) => [at(s), up(below[i])]).reverse()];
    node.append(svg("path", { class: "share", d: `${path(edge)}Z`, fill: one.colour, opacity: .8 }));
    below = above;
  }
  return panel(title, node, at, shares.map(one => ({ ...one, value: i => number(one.y[i] || 0, 3) })), note);
}

// rows: the histogram's bins from the lowest, each with its count at every step; darker is a greater share of the step.
function heat(title, x, rows, labels, stages, hue, note) {
  const { node, at, up } = axes([x[0] - .5, x[x.length - 1] + .5], [0, rows.length], []);
  node.querySelectorAll("text[text-anchor=end], line").forEach(old => old.remove());
  const every = Math.ceil(rows.length / 8), totals = x.map((_, i) => rows.reduce((sum, row) => sum + (row[i] || 0), 0) || 1);
  rows.forEach((row, k) => {
    if (k % every === 0) node.append(svg("text", { x: BOX.left - 4, y: up(k + .5) + 3, "text-anchor": "end" }, labels[k]));
    row.forEach((value, i) => {
      if (!value) return;
      const from = i ? (x[i - 1] + x[i]) / 2 : x[0] - .5, to = i + 1 < x.length ? (x[i] + x[i + 1]) / 2 : x[i] + .5;
      node.append(svg("rect", { x: at(from), y: up(k + 1), width: at(to) - at(from) + .3, height: up(k) - up(k + 1) + .3, fill: hue, opacity: Math.sqrt(value / totals[i]) }));
    });
  });
  for (const stage of stages) node.append(svg("line", { class: "stage", x1: at(stage.step), x2: at(stage.step), y1: BOX.top, y2: BOX.height - BOX.bottom, stroke: "#444", "stroke-dasharray": "3 3" }));
  return panel(title, node, at, rows.map((row, k) => ({ name: labels[k], x, value: i => row[i] ? percent(row[i] / totals[i]) : "" })), note, false);
}

function panel(title, node, at, names, note, legend = true) {
  const read = el("div", { class: "read" }, note || "");
  const line = svg("line", { y1: BOX.top, y2: BOX.height - BOX.bottom, stroke: "#333", visibility: "hidden" });
  node.append(line);
  node.addEventListener("mousemove", event => {
    const frame = node.getBoundingClientRect(), here = (event.clientX - frame.left) / frame.width * BOX.width;
    const nearest = one => one.x.reduce((best, v, i) => Math.abs(at(v) - here) < Math.abs(at(one.x[best]) - here) ? i : best, 0);
    const step = names[0].x[nearest(names[0])];
    line.setAttribute("x1", at(step)); line.setAttribute("x2", at(step)); line.setAttribute("visibility", "visible");
    const values = names.map(one => [one.name, one.value(nearest(one))]).filter(([, value]) => value !== "" && value !== "?");
    read.replaceChildren(`step ${number(step, 6)}: ${values.map(([name, value]) => names.length > 1 ? `${plain(name)} ${value}` : value).join(", ")}`);
    read.title = read.textContent;
  });
  node.addEventListener("mouseleave", () => { line.setAttribute("visibility", "hidden"); read.replaceChildren(note || ""); });
  const key = legend && names.length > 1 ? el("div", { class: "legend" }, names.map(one => el("span", {}, swatch(one.colour), plain(one.name)))) : null;
  return el("div", { class: "panel" }, el("h3", {}, plain(title)), node, read, key);
}
