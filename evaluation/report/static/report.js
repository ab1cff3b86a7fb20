"use strict";
// The trajectory browser, over trajectory.js. Everything shown goes through textContent.

const ROW_PX = 54;
const KEYS = ["run", "id", "question", "goldAnswers", "answer", "verdict", "endReason", "searches", "tokens", "step", "note"];
const $ = (id) => document.getElementById(id);
let rows = [], shown = [], selected = -1, chunkSize = 1;
const chunks = new Map(); // chunk number -> promise of its trajectories' blocks

async function unpack(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function blocksOf(row) {
  const number = Math.floor(row.position / chunkSize);
  if (!chunks.has(number)) chunks.set(number, unpack(`chunk-${number}`));
  return chunks.get(number).then((chunk) => chunk[row.position % chunkSize]);
}

function options(select, values, all) {
  select.replaceChildren(new Option(all, ""), ...values.map((value) => new Option(String(value), String(value))));
}

// ---- filters

let wanted = 0; // the newest filtering; an older one that ends later is dropped
async function filter() {
  const turn = ++wanted;
  const text = $("text").value.trim().toLowerCase();
  const kept = rows.filter((row) =>
    (!$("run").value || row.runName === $("run").value) &&
    (!$("verdict").value || row.verdict === $("verdict").value) &&
    (!$("ended").value || row.endReason === $("ended").value) &&
    (!$("step").value || String(row.step) === $("step").value));
  const found = text ? await search(kept, text, turn) : kept;
  if (turn !== wanted) return;
  shown = found;
  const right = shown.filter((row) => row.verdict === "right").length;
  $("count").textContent = `${shown.length} of ${rows.length}` + (shown.length ? `, ${right} right` : "");
  $("list").scrollTop = 0;
  choose(shown.length ? 0 : -1);
}

async function search(candidates, text, turn) {
  const found = [];
  for (const row of candidates) {
    if (turn !== wanted) return [];
    row.text ??= await searchable(row);
    if (row.text.includes(text)) found.push(row);
  }
  return found;
}

async function searchable(row) {
  const blocks = (await blocksOf(row)).map((block) => [block.text, ...block.passages.map((p) => p.contents)].join("\n"));
  return [row.id, row.question, ...row.goldAnswers, row.answer, row.note, ...blocks].join("\n").toLowerCase();
}

// ---- the list: only the rows in sight exist

function draw() {
  const list = $("list");
  $("spacer").style.height = `${shown.length * ROW_PX}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - 5);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + 5);
  $("spacer").replaceChildren(...shown.slice(first, last).map((row, offset) => line(row, first + offset)));
}

function line(row, place) {
  const meta = [row.verdict, row.endReason, `${row.searches} searches`, `${row.tokens} tokens`, row.answer || "no answer"];
  if (row.step !== null) meta.unshift(`step ${row.step}`);
  const made = element("div", { class: "row", role: "option", "aria-selected": place === selected, "data-place": place },
    element("div", { class: row.verdict }, row.question), element("div", { class: "meta" }, meta.join(" · ")));
  made.style.top = `${place * ROW_PX}px`;
  return made;
}

function choose(place) {
  selected = place;
  const list = $("list");
  if (place * ROW_PX < list.scrollTop) list.scrollTop = place * ROW_PX;
  if ((place + 1) * ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW_PX - list.clientHeight;
  draw();
  show(shown[place]);
}

// ---- one trajectory

async function show(row) {
  const detail = $("detail");
  if (!row) {
    detail.replaceChildren(element("p", { class: "hint" }, "No trajectory fits these filters."));
    return;
  }
  const blocks = await blocksOf(row);
  if (shown[selected] !== row) return;
  const facts = [["Run", row.runName], ["Id", row.id], ["Answer", row.answer || "none"], ["Gold", row.goldAnswers.join(" | ")],
    ["Verdict", row.verdict], ["End reason", row.endReason], ["Searches", row.searches], ["Tokens", row.tokens]];
  if (row.step !== null) facts.push(["Step", row.step]);
  if (row.note) facts.push(["Note", row.note]);
  const list = element("dl", {}, ...facts.flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", name === "Verdict" ? { class: row.verdict } : {}, String(value))]));
  detail.replaceChildren(element("h2", {}, row.question), list, ...blocks.map((one) => block(one, row)));
  detail.scrollTop = 0;
}

function block(step, row) {
  const origin = step.sampled === null ? "" : step.sampled ? " · sampled, trained on (mask 1)" : " · spliced, masked (mask 0)";
  const count = step.token_count === null ? "" : ` · ${step.token_count} tokens`;
  const side = step.sampled === null ? "" : step.sampled ? "sampled" : "spliced";
  const made = stepElement(step.kind + count + origin, side);
  if (step.tokens.length) made.append(element("pre", {}, ...step.tokens.map(token)));
  else if (!step.passages.length) made.append(element("pre", {}, ...marked(step.text, row.goldAnswers)));
  if (!step.tokens.length || step.passages.some((passage) => passage.id !== undefined)) {
    made.append(...step.passages.map((passage) => passageBlock(passage, row.goldAnswers)));
  }
  return made;
}

function token([text, logProb]) {
  const title = logProb === null ? "spliced" : `log-prob ${logProb.toFixed(4)}`;
  return element("span", { class: "token", title }, text);
}

// ---- start

async function start() {
  const index = await unpack("index");
  chunkSize = index.chunkSize;
  rows = index.rows.map((values, position) => {
    const row = Object.fromEntries(KEYS.map((key, place) => [key, values[place]]));
    return { ...row, position, runName: index.runs[row.run] };
  });
  const different = (key) => [...new Set(rows.map((row) => row[key]))].filter((value) => value !== null);
  options($("run"), index.runs, "all");
  options($("verdict"), ["right", "wrong", "failed"], "all");
  options($("ended"), different("endReason").sort(), "all");
  options($("step"), different("step").sort((a, b) => a - b), "all");
  $("step-label").hidden = !different("step").length;
  $("filters").addEventListener("input", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("list").addEventListener("scroll", draw);
  new ResizeObserver(draw).observe($("list"));
  $("list").addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) choose(Number(row.dataset.place));
  });
  $("list").addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (!move || !shown.length) return;
    event.preventDefault();
    choose(Math.min(shown.length - 1, Math.max(0, selected + move)));
  });
  await filter();
  document.body.dataset.ready = "true";
}

start();
