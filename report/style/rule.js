// The acceptance rule to be tried: drag p or q of a word, and see what is accepted, what is
// recovered, and that the output stays p. It takes the place of the figure that it is drawn from.
"use strict";

const TOP = 0.5; // probability at which a bar is full
const STEP = 0.01;
const KEYS = {
  ArrowUp: STEP, ArrowRight: STEP, ArrowDown: -STEP, ArrowLeft: -STEP,
  PageUp: 5 * STEP, PageDown: -5 * STEP, Home: -1, End: 1,
};

function make(tag, parent, attributes = {}, text = "") {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  parent.append(node);
  return node;
}

const shown = (value) => value.toFixed(2);
const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const sum = (values) => values.reduce((total, value) => total + value, 0);

// What the sampler does with a draft from q, word by word.
function decide(p, q) {
  const accepted = p.map((value, at) => Math.min(value, q[at]));
  const residual = p.map((value, at) => Math.max(value - q[at], 0));
  const rejected = 1 - sum(accepted);
  const rest = sum(residual);
  const recovered = residual.map((value) => (rest > 0 ? (rejected * value) / rest : 0));
  return {accepted, recovered, rejected, output: accepted.map((value, at) => value + recovered[at])};
}

// Give one word a probability; the others share the rest as they did, and none passes the top.
function change(values, at, wanted) {
  const others = values.filter((_, other) => other !== at);
  const rest = sum(others);
  const least = rest > 0 ? 1 - (TOP * rest) / Math.max(...others) : 0;
  const value = Math.min(TOP, Math.max(0, least, wanted));
  return values.map((old, other) => {
    if (other === at) return value;
    return rest > 0 ? (old * (1 - value)) / rest : (1 - value) / others.length;
  });
}

function start(place) {
  const {tokens, p, q, words} = JSON.parse(place.dataset.rule);
  const first = {p, q};
  let state = {p: [...p], q: [...q]};
  const group = make("div", place, {role: "group", "aria-label": words.name, class: "rule"});
  make("p", group, {class: "how"}, words.how);
  const chart = make("div", group, {class: "chart"});
  const columns = tokens.map(() => make("div", chart, {class: "column"}));
  const sliders = {p: [], q: []};
  const bars = tokens.map((token, at) => {
    const pair = make("div", columns[at], {class: "pair"});
    for (const which of ["p", "q"]) {
      const slider = make("div", pair, {
        role: "slider", tabindex: "0", class: `bar ${which}`, "aria-orientation": "vertical",
        "aria-label": filled(words[which], {word: token}), "aria-valuemin": "0",
        "aria-valuemax": String(100 * TOP),
      });
      make("span", slider);
      sliders[which].push(slider);
      listen(slider, which, at);
    }
    make("div", columns[at], {class: "word"}, token);
    const out = make("div", columns[at], {role: "img", class: "out"});
    const parts = ["accepted", "recovered", "target"].map((part) => make("span", out, {class: part}));
    const number = make("div", columns[at], {class: "value", "aria-hidden": "true"});
    return {out, parts, number};
  });
  const legend = make("p", group, {class: "legend"});
  for (const part of ["p", "q", "accepted", "recovered"]) {
    make("span", legend, {class: `key ${part}`});
    legend.append(` ${words.legend[part]} `);
  }
  const totals = make("p", group, {class: "totals"});
  const said = make("p", group, {"aria-live": "polite", class: "said"});
  const again = make("button", group, {type: "button"}, words.again);
  again.addEventListener("click", () => {
    state = {p: [...first.p], q: [...first.q]};
    show();
  });

  function listen(slider, which, at) {
    const set = (value) => {
      state[which] = change(state[which], at, value);
      show(at);
    };
    const drag = (event) => {
      const box = slider.getBoundingClientRect();
      set((TOP * (box.bottom - event.clientY)) / box.height);
    };
    slider.addEventListener("keydown", (event) => {
      if (!(event.key in KEYS)) return;
      event.preventDefault();
      set(state[which][at] + KEYS[event.key]);
    });
    slider.addEventListener("pointerdown", (event) => {
      slider.setPointerCapture(event.pointerId);
      slider.focus();
      drag(event);
    });
    slider.addEventListener("pointermove", (event) => {
      if (slider.hasPointerCapture(event.pointerId)) drag(event);
    });
  }

  function show(changed) {
    const result = decide(state.p, state.q);
    tokens.forEach((word, at) => {
      for (const which of ["p", "q"]) {
        const value = state[which][at];
        const slider = sliders[which][at];
        slider.setAttribute("aria-valuenow", (100 * value).toFixed(1));
        slider.setAttribute("aria-valuetext", shown(value));
        slider.firstChild.style.height = `${(100 * value) / TOP}%`;
      }
      const {out, parts: [accepted, recovered, target], number} = bars[at];
      accepted.style.height = `${(100 * result.accepted[at]) / TOP}%`;
      recovered.style.height = `${(100 * result.recovered[at]) / TOP}%`;
      target.style.bottom = `${(100 * state.p[at]) / TOP}%`;
      number.textContent = shown(result.output[at]);
      out.setAttribute("aria-label", filled(words.output, values(word, at, result)));
    });
    totals.textContent = filled(words.totals, {
      accepted: shown(1 - result.rejected), rejected: shown(result.rejected),
      sum: shown(sum(result.output)),
      off: shown(Math.max(...result.output.map((value, at) => Math.abs(value - state.p[at])))),
    });
    if (changed !== undefined) {
      said.textContent = filled(words.said, values(tokens[changed], changed, result));
    } else said.textContent = "";
  }

  function values(word, at, result) {
    const [mine, drafted] = [state.p[at], state.q[at]];
    return {
      word, p: shown(mine), q: shown(drafted), accepted: shown(result.accepted[at]),
      chance: shown(drafted > 0 ? Math.min(1, mine / drafted) : 1),
      recovered: shown(result.recovered[at]), output: shown(result.output[at]),
    };
  }

  show();
  place.closest("figure").classList.add("live");
}

document.querySelectorAll("[data-rule]").forEach(start);
