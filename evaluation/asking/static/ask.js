"use strict";
// The page of one question, over the report's trajectory.js: reads the answer line by line and shows each piece.

const $ = (id) => document.getElementById(id);
let running = null; // the AbortController of the answer under way

function say(text, kind = "plain") {
  $("message").textContent = text;
  $("message").dataset.kind = kind;
}

async function ask(question) {
  if (!question) return say("Write a question first.", "error");
  running?.abort(); // a newer question replaces the older one
  const mine = (running = new AbortController());
  const answer = new Answer(question);
  $("answers").prepend(answer.article);
  $("stop").hidden = false;
  say("");
  let problem = "";
  try {
    const reply = await fetch("ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ question }),
      signal: mine.signal,
    });
    if (!reply.ok) throw new Error((await reply.json().catch(() => ({}))).detail || `the page's server answered ${reply.status}`);
    for await (const line of linesOf(reply.body)) answer.add(JSON.parse(line));
    problem = answer.ended ? answer.error : "the answer broke off: is ask.py still running?";
  } catch (error) {
    if (mine.signal.aborted) problem = "stopped";
    else problem = error instanceof TypeError ? "the page's server cannot be reached: is ask.py still running?" : error.message;
  }
  answer.end(problem);
  if (mine !== running) return;
  running = null;
  $("stop").hidden = true;
  say(problem, problem === "stopped" ? "plain" : "error");
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

class Answer {
  constructor(question) {
    this.answer = element("p", { class: "answer", "aria-live": "polite" });
    this.figures = element("p", { class: "figures" });
    this.steps = element("div", { class: "live" });
    this.article = element("article", {}, element("h2", {}, question), this.answer, this.figures, this.steps);
    this.error = "";
    this.ended = false;
    this.turn = []; // the steps that the model wrote since the last result
  }

  add(piece) {
    if (piece.kind === "end") {
      this.ended = true;
      this.error = piece.error;
      this.figures.textContent = piece.error ? "" : piece.figures;
      this.answer.textContent = piece.answer || (piece.error ? "" : "no answer");
      this.answer.classList.toggle("none", !piece.answer);
    } else if (piece.retracts) {
      for (const step of this.turn.splice(0)) step.remove();
    } else {
      if (piece.starts) this.begin(piece);
      this.text.append(piece.text);
    }
  }

  begin({ kind, text, passages }) {
    const spliced = ["result", "forced"].includes(kind);
    const step = stepElement(kind, spliced ? "spliced" : "sampled");
    step.classList.add(kind);
    this.text = element("pre");
    if (passages.length) step.append(...passages.map((passage) => passageBlock(passage, [])));
    else step.append(this.text);
    this.steps.append(step);
    this.turn = spliced ? [] : [...this.turn, step];
  }

  end(problem) {
    this.steps.classList.remove("live");
    if (!problem) return;
    this.answer.textContent = problem;
    this.answer.className = "answer failed";
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value.trim());
  $("question").value = "";
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
