// Responses token by token, and the browser of rollouts.

const AT_ONCE = 4000; // tokens drawn before the reader asks for more
const ITEMS = 400; // entries of a list

function values(text) {
  if (text == null) return null;
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / 2 }, (_, i) => view.getInt16(2 * i, true)).map(v => v === -32768 ? null : v / 1024);
}

// What a token's shade can show: [value of a token, its darkest value, colour].
const SHADES = {
  logprobs: { text: "log-prob of the sampler", darkest: () => 5, rgb: "207,60,60" },
  entropies: { text: "entropy of the trainer", darkest: () => 3, rgb: "47,111,208" },
  gaps: { text: "trainer - sampler", darkest: sizes => Math.max(1e-3, ...sizes), rgb: "147,83,196" },
  none: { text: "nothing" },
};

function tokens(part, shade) {
  const node = el("div", { class: "text" });
  const unpacked = { logprobs: values(part.logprobs), entropies: values(part.entropies), gaps: values(part.gaps) };
  const chosen = unpacked[shade], kind = SHADES[shade];
  const sizes = (chosen || []).map(v => Math.abs(v ?? 0)), darkest = chosen ? kind.darkest(sizes.slice().sort((a, b) => b - a).slice(0, 1)) : 1;
  const gap = () => el("span", { class: "gap" }, `${part.left_out.toLocaleString("en")} ${chosen || part.logprobs ? "tokens" : "characters"} left out`);
  const draw = from => {
    const to = Math.min(part.pieces.length, from + AT_ONCE);
    for (let i = from; i < to; i++) {
      if (part.left_out && i === part.cut) node.append(gap());
      if (!part.logprobs) { node.append(...shown(part.pieces[i])); continue; }
      const span = el("span", { title: describe(unpacked, i) }, shown(part.pieces[i]));
      if (chosen) span.style.background = `rgba(${kind.rgb},${Math.min(.85, chosen[i] == null ? .85 : .85 * sizes[i] / darkest)})`;
      node.append(span);
    }
    if (part.left_out && to === part.pieces.length && part.cut >= to) node.append(gap());
    if (to < part.pieces.length) {
      const more = el("button", { onclick: () => { more.remove(); draw(to); } }, `${part.pieces.length - to} more tokens`);
      node.append(more);
    }
  };
  draw(0);
  return node;
}

function describe(unpacked, i) {
  const say = (name, list) => `${name} ${list[i] == null ? "not finite" : list[i].toFixed(3)}`;
  return [say("log-prob", unpacked.logprobs), say("entropy", unpacked.entropies), say("trainer - sampler", unpacked.gaps)].join(", ");
}

// One response: verdict, thoughts folded, and the rest. dimmed: it is not what the filters ask for.
function response(sample, shade, dimmed) {
  const facts = [sample.reason, sample.tokens == null ? null : `${sample.tokens} tokens`, sample.finish === "length" ? "cut off" : null].filter(Boolean).map(plain).join(" · ");
  const thoughts = sample.thoughts.pieces.length ? el("details", {}, el("summary", {}, "thoughts")) : null;
  thoughts?.addEventListener("toggle", () => { if (thoughts.open && thoughts.children.length === 1) thoughts.append(tokens(sample.thoughts, shade)); });
  return el("div", { class: `response ${sample.reward > 0 ? "right" : "wrong"}${dimmed ? " other" : ""}` },
    el("div", {}, el("b", {}, `#${sample.sample} reward ${number(sample.reward)}`), el("span", { class: "dim" }, ` ${facts}`)),
    el("div", {}, "answer: ", sample.answer == null ? el("span", { class: "dim" }, "none") : el("b", {}, shown(sample.answer))),
    thoughts, sample.final.pieces.length ? tokens(sample.final, shade) : el("div", { class: "dim" }, "nothing after the thoughts"));
}

const textOf = sample => sample.thoughts.pieces.join("") + sample.final.pieces.join("");
const rightOf = group => group.samples.filter(sample => sample.reward > 0).length;

function rollouts() {
  if (!data.groups.length) return;
  const list = el("div", { class: "list", id: "groups" }), detail = el("div", { id: "group" }), count = el("span", { class: "dim", id: "count" });
  const runs = [...new Set(data.groups.map(group => group.run))], unique = key => [...new Set(data.groups.flatMap(g => g.samples.map(s => s[key])))].sort();
  const problems = [...new Set(data.groups.map(group => group.problem))];
  let chosen = null;
  const controls = {
    run: select("run", [["", "every run"], ...runs.map(run => [run, plain(run)])], draw),
    from: el("input", { type: "number", name: "from", placeholder: "first step", oninput: draw }),
    to: el("input", { type: "number", name: "to", placeholder: "last step", oninput: draw }),
    problem: select("problem", [["", "every problem"], ...problems.map(id => [id, plain(id).slice(0, 24)])], draw),
    group: select("group", [["", "every group"], ["mixed", "mixed"], ["right", "all right"], ["wrong", "all wrong"]], draw),
    reward: select("reward", [["", "every reward"], ...unique("reward").map(r => [String(r), `reward ${number(r)}`])], draw),
    reason: select("reason", [["", "every verdict"], ...unique("reason").map(r => [r, plain(r)])], draw),
    finish: select("finish", [["", "any end"], ["stop", "stopped"], ["length", "cut off"]], draw),
    words: el("input", { type: "search", name: "words", placeholder: "words of prompt or response", oninput: draw }),
    order: select("order", [["step", "by step"], ["rate", "by pass rate"], ["gap", "by |trainer - sampler|"]], draw),
    shade: select("shade", Object.entries(SHADES).map(([key, { text }]) => [key, `shade: ${text}`]), () => { if (chosen) open(chosen); }),
  };
  const widest = group => group.widest ??= Math.max(...group.samples.flatMap(s => [s.thoughts, s.final].flatMap(p => values(p.gaps).map(v => Math.abs(v ?? 32)))), 0);
  const fits = sample => (!controls.reward.value || String(sample.reward) === controls.reward.value)
    && (!controls.reason.value || sample.reason === controls.reason.value) && (!controls.finish.value || sample.finish === controls.finish.value);
  const kinds = { "": () => true, right: g => rightOf(g) === g.samples.length, wrong: g => rightOf(g) === 0, mixed: g => rightOf(g) > 0 && rightOf(g) < g.samples.length };

  function matching() {
    const words = controls.words.value.toLowerCase(), from = Number(controls.from.value || -Infinity), to = Number(controls.to.value || Infinity);
    const found = data.groups.filter(group => (!controls.run.value || group.run === controls.run.value) && group.step >= from && group.step <= to
      && (!controls.problem.value || group.problem === controls.problem.value) && kinds[controls.group.value](group) && group.samples.some(fits)
      && (!words || [group.prompt, group.problem, ...group.answers, ...group.samples.map(textOf)].some(text => text.toLowerCase().includes(words))));
    if (controls.order.value === "rate") found.sort((a, b) => rightOf(a) / a.samples.length - rightOf(b) / b.samples.length);
    if (controls.order.value === "gap") found.sort((a, b) => widest(b) - widest(a));
    return found;
  }

  function draw() {
    const found = matching();
    count.textContent = `${found.length} of ${data.groups.length} groups`;
    list.replaceChildren(...found.slice(0, ITEMS).map(group => {
      const text = `${rightOf(group)}/${group.samples.length} · step ${group.step}${runs.length > 1 ? ` · ${plain(group.run)}` : ""} · ${plain(group.question).slice(0, 160)}`;
      const item = el("button", { class: group === chosen ? "item chosen" : "item", onclick: () => { list.querySelector(".chosen")?.classList.remove("chosen"); item.classList.add("chosen"); open(group); } }, text);
      return item;
    }), ...(found.length > ITEMS ? [el("div", { class: "item dim" }, `${found.length - ITEMS} more; narrow the filters`)] : []));
    if (found.length && !found.includes(chosen)) { list.querySelector(".item").classList.add("chosen"); open(found[0]); }
    else if (chosen) open(found.length ? chosen : null);
  }

  function open(group) {
    chosen = group;
    if (!group) return detail.replaceChildren();
    const facts = [plain(group.run), `step ${group.step}`, plain(group.stage), plain(group.source), `problem ${plain(group.problem)}`].filter(Boolean).join(" · ");
    detail.replaceChildren(el("h3", {}, facts), el("div", { class: "text" }, shown(group.question)),
      el("div", {}, "gold: ", group.answers.map((answer, i) => [i ? " or " : "", el("b", {}, shown(answer))])),
      el("details", {}, el("summary", {}, "the prompt as the model reads it"), el("div", { class: "text" }, shown(group.prompt))),
      el("div", { class: "siblings" }, group.samples.map(sample => response(sample, controls.shade.value, !fits(sample)))));
  }

  section("rollouts", "Rollouts", data.notes.map(note => el("div", { class: "note" }, shown(note))), el("div", { class: "bar" }, Object.values(controls), count),
    el("div", { class: "split" }, list, detail));
  draw();
}
