// The server's state and load, fetched every two seconds while the page is visible.

import { figuresBetween, formatSeconds, readSample } from "./metrics.js";
import { authorization } from "./token.js";

const PERIOD_MS = 2000;
const TIMEOUT_MS = 4000;
const WINDOW_S = 10;
const WORDS = ["healthy", "loading", "draining", "failed", "unreachable"];
const samples = [];
const element = (id) => document.getElementById(id);
const set = (id, text) => {
  if (element(id).textContent !== text) element(id).textContent = text; // unchanged text is not read out again
};

async function health() {
  try {
    const answer = await fetch("health", { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
    return await answer.json();
  } catch {
    return { status: "unreachable" };
  }
}

async function showHealth() {
  const { status, documents, retrieval_method: method } = await health();
  const word = WORDS.includes(status) ? status : "unhealthy";
  element("status").dataset.status = word;
  set("status-word", word);
  const count = typeof documents === "number" ? `${documents.toLocaleString("en")} passages` : "";
  set("status-text", [method, count].filter(Boolean).join(" · "));
}

async function showLoad() {
  let text = "";
  try {
    const answer = await fetch("metrics", {
      headers: authorization(), signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store",
    });
    if (answer.ok) text = await answer.text();
  } catch {
    // The state above says that the server does not answer.
  }
  if (!text) samples.length = 0;
  const now = readSample(text, performance.now() / 1000);
  while (samples.length > 1 && samples[1].seconds <= now.seconds - WINDOW_S) samples.shift();
  const figures = figuresBetween(samples[0] ?? now, now);
  if (text) samples.push(now);
  set("qps", figures.qps === null ? "–" : figures.qps.toFixed(figures.qps < 10 ? 1 : 0));
  set("p50", formatSeconds(figures.p50));
  set("p99", formatSeconds(figures.p99));
  set("queue", outOf(now.queue, now.queueLimit));
  set("cache", figures.cacheShare === null ? "–" : `${(100 * figures.cacheShare).toFixed(0)} %`);
  set("retrievers", outOf(now.available, now.retrievers));
}

const outOf = (count, total) => (count === null ? "–" : total === null ? `${count}` : `${count} of ${total}`);

async function watch() {
  if (!document.hidden) await Promise.all([showHealth(), showLoad()]);
  setTimeout(watch, PERIOD_MS);
}

watch();
