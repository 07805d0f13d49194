// On paper nothing can be opened: sections beyond the core path and answers are; hints are not.
const folded = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:is(.curious, .hide):not([open])")) {
    part.open = folded.push(part) > 0;
  }
});
addEventListener("afterprint", () => {
  for (const part of folded.splice(0)) part.open = false;
});

// Names for two parts of the theme that a screen reader would otherwise meet without one.
document.addEventListener("DOMContentLoaded", () => {
  for (const toggle of document.querySelectorAll("nav summary")) {
    const link = toggle.closest("li")?.querySelector("a");
    toggle.setAttribute("aria-label", `Pages below ${link?.textContent.trim() ?? "this one"}`);
  }
  const title = document.querySelector(".sidebar-primary-item:has(.navbar-brand)");
  title?.setAttribute("role", "region");
  title?.setAttribute("aria-label", "Title");
});
