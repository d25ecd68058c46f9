// An order through time: the slider, the links of the timeline and of its steps show another moment of the same
// page in place. Without this script the links and the form do it, by loading the page again.
"use strict";

const WAIT = 120; // milliseconds without another move, before a moment is asked for

const slider = document.getElementById("version");
const titles = [...document.querySelectorAll("#events .title")].map((title) => title.textContent);
let timer;
let asked;

document.getElementById("show").hidden = true;

slider.addEventListener("input", () => goTo(Number(slider.value)));
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-version]");
  if (link === null || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  goTo(Number(link.dataset.version));
});
window.addEventListener("popstate", () => location.reload());

function goTo(version) {
  slider.value = version;
  slider.setAttribute("aria-valuetext", `${version}: ${titles[version - 1]}`);
  document.getElementById("shown").textContent = version;
  document.querySelectorAll("#events > li").forEach((entry, index) => {
    if (index === version - 1) entry.setAttribute("aria-current", "step");
    else entry.removeAttribute("aria-current");
  });
  step("before", Math.max(version - 1, 1), version);
  step("after", Math.min(version + 1, titles.length), version);
  clearTimeout(timer);
  timer = setTimeout(show, WAIT, version);
}

function step(id, to, version) {
  const link = document.getElementById(id);
  link.dataset.version = to;
  link.href = `?version=${to}#moment`;
  link.classList.toggle("off", to === version);
}

async function show(version) {
  asked?.abort();
  asked = new AbortController();
  const address = `${location.pathname}?version=${version}`;
  const moment = document.getElementById("moment");
  moment.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(address, { signal: asked.signal, redirect: "error" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const found = page.getElementById("moment");
    if (!answer.ok || found === null) throw new Error(answer.statusText);
    moment.replaceWith(document.adoptNode(found));
    history.replaceState(null, "", address);
  } catch (error) {
    // The page itself says what is wrong: that the session has ended, for example.
    if (error.name !== "AbortError") location.assign(address);
  }
}
