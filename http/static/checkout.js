"use strict";

// The page works without this: forms are sent, and pages refresh. With it, a page follows its session as it changes
// (another tab, the bank, the processor), and a form is sent once however often its button is pressed.

const panes = document.querySelector("[data-version]");
let events = null;
let again = 0;

function lookAgain(milliseconds) {
  window.clearTimeout(again);
  again = window.setTimeout(() => window.location.reload(), milliseconds);
}

function follow() {
  events = new EventSource(panes.dataset.events);
  events.addEventListener("message", (message) => {
    if (message.data !== panes.dataset.version) {
      lookAgain(0);
    }
  });
  events.addEventListener("error", () => {
    // Where the browser gives up (an answer that is no stream), the page is loaded anew in its place.
    if (events.readyState === EventSource.CLOSED) {
      lookAgain(4000 + Math.random() * 4000);
    }
  });
}

function leave() {
  window.clearTimeout(again);
  events?.close();
}

if (panes.dataset.events !== undefined) {
  follow();
  // Browsers allow few connections to one host: tabs that nobody looks at let theirs go.
  document.addEventListener("visibilitychange", () => {
    leave();
    if (document.visibilityState === "visible") {
      follow();
    }
  });
  window.addEventListener("pagehide", leave);
}

// Kept by the browser as it was and shown again, by the back button.
window.addEventListener("pageshow", (shown) => {
  if (shown.persisted) {
    lookAgain(0);
  }
});

const form = document.querySelector("form[data-pays]");
form?.addEventListener("submit", (submission) => {
  if (form.dataset.pays === "sent") {
    submission.preventDefault();
    return;
  }
  form.dataset.pays = "sent";
  leave();
  const button = form.querySelector("button");
  button.setAttribute("aria-busy", "true");
  button.querySelector("span").textContent = "Paying…";
});
