// The search form and its results. Passages are set as text, never as HTML.

import { formatSeconds } from "./metrics.js";
import { authorization, keepToken } from "./token.js";

const SHOWN_CHARS = 600;
const form = document.getElementById("search");
const tokenForm = document.getElementById("token-form");
const message = document.getElementById("message");
const results = document.getElementById("results");
let running = null; // the AbortController of the search under way

function say(text, kind = "plain") {
  message.textContent = text;
  message.dataset.kind = kind;
}

function finish() {
  running = null;
  form.removeAttribute("aria-busy");
}

async function search() {
  running?.abort(); // a newer search replaces the older one
  const query = form.query.value.trim();
  results.replaceChildren();
  if (!query) {
    finish();
    say("Enter a question or some keywords first.", "error");
    form.query.focus();
    return;
  }
  const mine = (running = new AbortController());
  form.setAttribute("aria-busy", "true");
  say("Searching …");
  const started = performance.now();
  try {
    const answer = await fetch("search", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorization() },
      body: JSON.stringify({ query, top_n: form.top_n.valueAsNumber || 5, return_score: true }),
      signal: mine.signal,
    });
    const payload = await answer.json().catch(() => null);
    if (mine !== running) return;
    finish();
    if (answer.ok && payload) show(payload, (performance.now() - started) / 1000);
    else refuse(answer, payload);
  } catch (error) {
    if (mine !== running) return; // a newer search has replaced this one
    finish();
    say(error.name === "AbortError" ? "Cancelled." : "The server cannot be reached. Is it running?", "error");
  }
}

function show([documents, scores], seconds) {
  tokenForm.hidden = true;
  const found = documents.length === 1 ? "1 result" : `${documents.length} results`;
  say(documents.length ? `${found} in ${formatSeconds(seconds)}` : `Nothing found (${formatSeconds(seconds)}).`);
  results.replaceChildren(...documents.map((document, i) => resultItem(document, scores[i])));
}

function resultItem({ id, contents }, score) {
  const firstLine = contents.split("\n", 1)[0];
  const title = /^".*"$/.test(firstLine) && firstLine.length > 1 ? firstLine.slice(1, -1) : firstLine;
  const item = element("li", "");
  item.append(
    element("h3", title || "(no title)"),
    element("p", `score ${score.toPrecision(4)} · id ${id}`, "facts"),
    ...passage(contents.slice(firstLine.length + 1)),
  );
  return item;
}

function passage(text) {
  const body = element("p", text, "passage");
  if (text.length <= SHOWN_CHARS) return [body];
  body.textContent = `${text.slice(0, SHOWN_CHARS)} …`;
  const more = element("button", "Show all", "more");
  more.type = "button";
  more.addEventListener("click", () => {
    body.textContent = text;
    more.remove();
  });
  return [body, more];
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function refuse(answer, payload) {
  const wait = Number(answer.headers.get("Retry-After"));
  const later = wait > 0 ? `Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.` : "Try again in a moment.";
  const texts = {
    401: "Enter the server's token.",
    429: `The server is busy: its queue is full. ${later}`,
    503: `The server does not take searches now (${reason(payload) || "unavailable"}). ${later}`,
    504: "The search took too long and was given up. Try again in a moment.",
  };
  say(texts[answer.status] ?? `The server answered ${answer.status}: ${reason(payload) || answer.statusText}`, "error");
  if (answer.status !== 401) return;
  tokenForm.hidden = false;
  tokenForm.token.focus();
}

/** The text of {"detail": …}: a sentence, or the schema's list of problems. */
function reason(payload) {
  const detail = payload?.detail;
  if (Array.isArray(detail)) return detail.map(({ loc, msg }) => `${loc?.at(-1) ?? ""}: ${msg}`).join("; ");
  return typeof detail === "string" ? detail : "";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});

tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(tokenForm.token.value.trim());
  tokenForm.token.value = "";
  tokenForm.hidden = true;
  search();
});

form.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
