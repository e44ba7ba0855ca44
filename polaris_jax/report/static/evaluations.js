// Scores of the evaluations, and each problem in all of them: what changed from the first to the last.

function rate(run) {
  return run && run.right.length ? [...run.right].filter(c => c === "1").length / run.right.length : null;
}

function change(problem) {
  const rates = problem.runs.map(rate).filter(v => v != null);
  return rates.length > 1 ? rates[rates.length - 1] - rates[0] : null;
}

function scoreTable({ runs }) {
  const benchmarks = [...new Set(runs.flatMap(run => Object.keys(run.benchmarks)))];
  const numbers = ["n", "k", "avg@k", "95%", "pass@k", "maj@k", "tokens", "cut off"];
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["benchmark", "evaluation"].map(n => el("th", {}, n)), numbers.map(n => el("th", { class: "number" }, n)))),
    el("tbody", {}, benchmarks.flatMap(benchmark => runs.filter(run => run.benchmarks[benchmark]).map(run => {
      const one = run.benchmarks[benchmark], { mean, low, high } = one.average;
      const cells = [one.problems, one.samples, percent(mean), low == null ? "?" : `${percent(low)} - ${percent(high)}`, percent(one.pass), percent(one.majority), one.length == null ? "?" : Math.round(one.length), percent(one.cut_off)];
      return el("tr", {}, el("td", {}, shown(benchmark)), el("td", {}, shown(run.name)), cells.map(text => el("td", { class: "number" }, String(text))));
    })))));
}

function evaluations() {
  const found = data.evaluations;
  if (!found.runs.length) return;
  const compared = found.runs.length > 1, body = el("tbody", { id: "problems" }), detail = el("div", { id: "problem" }), count = el("span", { class: "dim", id: "problem-count" });
  const benchmarks = [...new Set(found.problems.map(problem => problem.benchmark))];
  const controls = {
    benchmark: select("benchmark", [["", "every benchmark"], ...benchmarks.map(name => [name, plain(name)])], draw),
    change: select("change", compared ? [["", "every problem"], ["any", "changed"], ["up", "better in the last"], ["down", "worse in the last"]] : [["", "every problem"], ["right", "always right"], ["some", "sometimes right"], ["wrong", "never right"]], draw),
    words: el("input", { type: "search", name: "problem words", placeholder: "words of question or response", oninput: draw }),
  };
  const kinds = {
    "": () => true, any: p => change(p), up: p => change(p) > 0, down: p => change(p) < 0,
    right: p => rate(p.runs[0]) === 1, wrong: p => rate(p.runs[0]) === 0, some: p => rate(p.runs[0]) > 0 && rate(p.runs[0]) < 1,
  };

  function draw() {
    const words = controls.words.value.toLowerCase();
    const rows = found.problems.filter(problem => (!controls.benchmark.value || problem.benchmark === controls.benchmark.value) && kinds[controls.change.value](problem)
      && (!words || [problem.question, problem.id, ...problem.answers, ...problem.runs.flatMap(run => run ? run.responses.map(textOf) : [])].some(text => text.toLowerCase().includes(words))));
    if (compared) rows.sort((a, b) => Math.abs(change(b)) - Math.abs(change(a)));
    count.textContent = `${rows.length} of ${found.problems.length} problems${rows.length > ITEMS ? `, the first ${ITEMS} shown` : ""}`;
    body.replaceChildren(...rows.slice(0, ITEMS).map(problem => {
      const delta = change(problem), style = delta > 0 ? "number up" : delta < 0 ? "number down" : "number";
      return el("tr", { class: "choose", onclick: () => open(problem) }, el("td", {}, plain(problem.benchmark)), el("td", {}, plain(problem.question).slice(0, 110)),
        problem.runs.map(run => el("td", { class: "number" }, run ? `${[...run.right].filter(c => c === "1").length}/${run.right.length}` : "")),
        compared ? el("td", { class: style }, delta == null ? "" : `${delta > 0 ? "+" : ""}${(100 * delta).toFixed(0)}%`) : null);
    }));
  }

  function open(problem) {
    detail.replaceChildren(el("h3", {}, `${plain(problem.benchmark)} · problem ${plain(problem.id)}`), el("div", { class: "text" }, shown(problem.question)),
      el("div", {}, "gold: ", problem.answers.map((answer, i) => [i ? " or " : "", el("b", {}, shown(answer))])),
      el("div", { class: "siblings" }, problem.runs.map((run, i) => run && el("div", {}, el("h3", {}, plain(found.runs[i].name)), el("div", { class: "dim" }, [...run.right].map(c => c === "1" ? "✓" : "✗").join("")),
        run.responses.length ? run.responses.map(sample => response(sample, "none", false)) : el("div", { class: "dim" }, "no responses are kept in this page")))));
    detail.scrollIntoView({ block: "nearest" });
  }

  const notes = [];
  if (found.without_texts) notes.push(`Responses to ${found.problems.length - found.without_texts} of ${found.problems.length} problems are shown: all would not fit.`);
  if (found.left_out) notes.push(`${found.left_out} more problems are left out: all would not fit.`);
  section("evaluations", "Evaluations", scoreTable(found), el("p", { class: "dim" }, "Of each problem at most two right and two wrong responses of an evaluation are shown. A click opens a problem."),
    notes.map(note => el("div", { class: "note" }, note)), el("div", { class: "bar" }, Object.values(controls), count), detail,
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["benchmark", "problem"].map(n => el("th", {}, n)), found.runs.map(run => el("th", { class: "number" }, plain(run.name))), compared ? el("th", { class: "number" }, "change") : null)), body)));
  draw();
}
