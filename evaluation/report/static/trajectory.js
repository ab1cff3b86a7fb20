"use strict";
// The parts of a trajectory on a page: the report's, and that of one question. Everything shown goes through
// textContent: a passage may hold HTML, and must not run.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// One step, whose model text is sampled and whose result is spliced in; `side` is "" where nobody knows.
function stepElement(who, side) {
  return element("div", { class: `step ${side}`.trim() }, element("div", { class: "who" }, who));
}

function passageBlock(passage, goldAnswers) {
  const made = element("div", { class: "passage" });
  if (passage.id !== undefined) made.append(element("span", { class: "who" }, `${passage.id} `));
  if (typeof passage.score === "number") made.append(element("span", { class: "who" }, `score ${passage.score.toFixed(4)} `));
  if (passage.has_answer) made.append(element("span", { class: "badge right" }, "holds the answer"));
  made.append(element("pre", {}, ...marked(passage.contents, goldAnswers)));
  return made;
}

// The text with every gold answer in it marked.
function marked(text, goldAnswers) {
  const escaped = goldAnswers.filter((gold) => gold.trim()).map((gold) => gold.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!escaped.length) return [text];
  return text.split(new RegExp(`(${escaped.join("|")})`, "gi"))
    .map((part, place) => (place % 2 ? element("mark", {}, part) : part));
}
