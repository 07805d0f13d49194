// A slide that is higher than the screen is made smaller until it fits; its scale is kept for the test.
document.addEventListener("DOMContentLoaded", () => {
  // Ask first: a result, and what is said about it, comes with the next press of the key.
  for (const result of document.querySelectorAll(".slides section > div:has(> .cell_output)")) {
    let next = result.matches("h1 + *, h2 + *, h3 + *") ? null : result;
    for (; next; next = next.nextElementSibling) next.classList.add("fragment");
  }
  for (const said of document.querySelectorAll(".slides section > p:has(> em:first-child)"))
    if (said.textContent.startsWith("What to see")) said.classList.add("fragment");
  const fit = () => {
    const { width, height } = Reveal.getConfig();
    document.body.classList.add("measuring"); // all slides at once, at their full size
    for (const slide of Reveal.getSlides()) {
      let scale = 1;
      const over = () => {
        const down = slide.lastElementChild.getBoundingClientRect().bottom;
        const parts = [...slide.querySelectorAll("pre, table, img, mjx-container")];
        const wide = Math.max(0, ...parts.map((part) => part.getBoundingClientRect().right));
        const from = slide.getBoundingClientRect();
        return down - from.top > height * Reveal.getScale() || wide - from.left > width * Reveal.getScale() + 1;
      };
      while (over() && scale > 0.4) {
        scale -= 0.02;
        slide.style.zoom = scale;
      }
      slide.dataset.scale = scale.toFixed(2);
    }
    document.body.classList.remove("measuring");
    Reveal.sync(); // knows the fragments
    document.body.dataset.fitted = "yes";
  };
  const ready = window.MathJax?.startup?.promise ?? Promise.resolve();
  Promise.all([ready, new Promise((done) => window.addEventListener("load", done))]).then(fit);
});
