// Explorers without a kernel: labelled controls, a picture, and a sentence that is read aloud.
const show = value => Number.isInteger(value) || typeof value === "string"
  ? String(value) : String(Number(value.toPrecision(4)));

// The standard normal distribution: Abramowitz and Stegun 26.2.17; its inverse by bisection.
const cdf = z => {
  const t = 1 / (1 + 0.2316419 * Math.abs(z));
  const sum = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978
    + t * 1.330274429))));
  const tail = Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI) * sum;
  return z > 0 ? 1 - tail : tail;
};
const ppf = p => {
  let low = -8, high = 8;
  for (let k = 0; k < 60; k++) {
    const middle = (low + high) / 2;
    cdf(middle) < p ? low = middle : high = middle;
  }
  return (low + high) / 2;
};

const FORMULAS = {
  radius({ p_a, sigma, delta }) {
    const keeps = length => cdf(ppf(p_a) - length / sigma), here = keeps(delta);
    const radius = Math.max(0, sigma * ppf(p_a)), longest = 2, x = r => 60 + 580 * r / longest;
    const y = p => 20 + 240 * (1 - p);
    const line = [...Array(101).keys()].map(k => longest * k / 100)
      .map(r => `${x(r).toFixed(1)},${y(keeps(r)).toFixed(1)}`).join(" ");
    const ticks = [0, 0.5, 1, 1.5, 2].map(r => `<text x="${x(r)}" y="282" text-anchor="middle">`
      + `${r}</text>`).join("") + [0, 0.5, 1].map(p => `<text x="50" y="${y(p) + 5}" `
      + `text-anchor="end">${p}</text>`).join("");
    const picture = `<svg viewBox="0 0 660 310" role="img" aria-label="Curve and circle">`
      + `<rect x="60" y="20" width="580" height="240" fill="none" stroke="currentColor"/>${ticks}`
      + `<line x1="60" x2="640" y1="${y(0.5)}" y2="${y(0.5)}" stroke="currentColor" `
      + `stroke-dasharray="6 4"/><polyline points="${line}" fill="none" stroke="#0072b2" `
      + `stroke-width="3"/><line x1="${x(Math.min(radius, longest))}" x2="${
        x(Math.min(radius, longest))}" y1="${y(0.5)}" y2="${y(0)}" stroke="currentColor"/>`
      + `<circle cx="${x(delta)}" cy="${y(here)}" r="8" fill="#d55e00" stroke="currentColor"/>`
      + `<text x="350" y="304" text-anchor="middle">length of delta; upright line: the radius</text>`
      + `</svg>`;
    const verdict = here > 0.5 ? "still A" : "not guaranteed";
    return [picture, `p_A at least ${p_a.toFixed(2)}, sigma ${sigma.toFixed(2)}: after a move of ${
      delta.toFixed(2)} class A keeps at least probability ${here.toFixed(3)} (${verdict}); the `
      + `certified radius is ${radius.toFixed(3)}.`];
  },
};

function make(name, about = {}, ...children) {
  const made = Object.assign(document.createElement(name), about);
  made.append(...children);
  return made;
}

function control(about, changed) {
  const names = about.values?.every(value => typeof value === "string");
  const input = names
    ? make("select", {}, ...about.values.map(value => make("option", { value }, value)))
    : make("input", { type: "range", ...(about.values
      ? { min: 0, max: about.values.length - 1, step: 1 }
      : { min: about.min, max: about.max, step: about.step }) });
  if (names) input.selectedIndex = about.start;
  else input.value = about.values ? about.start : about.value;
  const value = () => names ? input.value
    : about.values ? about.values[input.value] : Number(input.value);
  const shown = make("span", { ariaHidden: "true" });  // aria-valuetext is what is read aloud
  const tell = () => {
    if (names) return;
    shown.textContent = show(value());
    input.setAttribute("aria-valuetext", show(value()));
  };
  input.addEventListener("input", () => { tell(); changed(); });
  tell();
  const index = () => about.values.indexOf(value());
  return { name: about.name, value, index, size: about.values?.length,
    label: make("label", {}, make("span", { textContent: about.name }), input, shown) };
}

function start(place) {
  const data = JSON.parse(place.querySelector("script").textContent);
  const picture = make("div"), says = make("p");
  says.setAttribute("aria-live", "polite");
  const controls = data.controls.map(about => control(about, update));
  function update() {
    if (data.formula) {
      const values = Object.fromEntries(controls.map(each => [each.name, each.value()]));
      [picture.innerHTML, says.textContent] = FORMULAS[data.formula](values);
    } else {
      const state = controls.reduce((sum, each) => sum * each.size + each.index(), 0);
      says.textContent = data.says[state];
      picture.replaceChildren(make("img", { alt: data.says[state],
        src: "data:image/webp;base64," + data.pictures[data.shown[state]] }));
    }
  }
  place.replaceChildren(...controls.map(each => each.label), picture, says);
  update();
}

document.addEventListener("DOMContentLoaded", () =>
  document.querySelectorAll(".explorer").forEach(start));
