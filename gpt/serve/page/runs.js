// The list of runs, and the facts about the one that was chosen.

import { $, make, refresh, set } from "./dom.js";
import { brief, count, duration, lossText, size } from "./words.js";

const MOST_SAMPLES = 100;
const rows = new Map(); // the parts of each run's row, by its name
let seen; // the name of the run that was chosen when the list was shown last

// Show the runs. `chosen` is the name of one; `compared` a set of names whose curves are drawn too. A click on a run
// calls choose(name), a click on a box compare(name, whether).
export function list(runs, chosen, compared, { choose, compare }) {
  $("no-runs").hidden = runs.length > 0;
  for (const run of runs) {
    if (!rows.has(run.name)) rows.set(run.name, makeRow(run.name, choose, compare));
    const { box, button, state, hint } = rows.get(run.name);
    const isChosen = run.name === chosen;
    set(state, "textContent", run.state);
    set(state, "className", `state ${run.state}`);
    set(hint, "textContent", progress(run));
    button.setAttribute("aria-current", isChosen);
    box.checked = isChosen || compared.has(run.name);
    box.disabled = isChosen;
  }
  const names = runs.map((run) => run.name);
  refresh($("runs"), names, () => names.map((name) => rows.get(name).row));
  if (chosen !== seen) rows.get(chosen)?.row.scrollIntoView({ block: "nearest" }); // the list may be long
  seen = chosen;
}

function makeRow(name, choose, compare) {
  const box = make("input", {
    type: "checkbox",
    id: `compare-${name}`,
    onchange: () => compare(name, box.checked),
  });
  box.setAttribute("aria-label", `Draw the curves of ${name} too`);
  const [state, hint] = [make("span"), make("span", { className: "hint" })];
  const properties = { type: "button", id: `choose-${name}`, onclick: () => choose(name) };
  const button = make("button", properties, make("strong", { title: name }, name), make("span", {}, state, hint));
  return { row: make("li", {}, box, button), box, button, state, hint };
}

function progress(run) {
  const parts = [""]; // behind the state
  if (run.step !== null) parts.push(place(run));
  if (run.best_val_loss !== null) parts.push(`best ${lossText(run.best_val_loss, 3)}`);
  return parts.join(", ");
}

// "step 300 of 1,500"; nobody but the process that trains knows the second number before the first checkpoint
const place = (run) => `step ${count(run.step)}${run.steps === null ? "" : ` of ${count(run.steps)}`}`;

// The facts about a run: `speed` is the last one it logged, in tokens per second.
export function facts(run, speed) {
  const model = run.model;
  const told = [
    ["State", run.step === null ? run.state : `${run.state}, ${place(run)}`],
    ["Loss", run.loss && lossText(run.loss)],
    ["Best validation loss", run.best_val_loss && `${lossText(run.best_val_loss)} at step ${count(run.best_step)}`],
    ["Speed", speed && `${brief(speed)} tokens/s`],
    ["Trained on", run.tokens && `${brief(run.tokens)} tokens in ${duration(run.seconds)}`],
    ["Device", run.device],
    ["Parameters", run.parameters && count(run.parameters)],
    ["Model", model && `${model.num_layers} layers of ${model.embed_dim}, ${model.num_heads} heads`],
    ["Context", model && `${count(model.max_seq_len)} tokens`],
    ["Vocabulary", model && `${count(model.vocab_size)} tokens`],
    ["On disk", size(run.disk_bytes)],
  ];
  const known = told.filter(([, fact]) => fact);
  set($("name"), "textContent", run.name);
  refresh($("facts"), known, () =>
    known.map(([name, fact]) => make("div", {}, make("dt", {}, name), make("dd", {}, fact))),
  );
}

// The samples in the log of a run, the latest first.
export function samples(name, lines) {
  const found = lines.filter((line) => typeof line.sample === "string").reverse();
  $("no-samples").hidden = found.length > 0;
  refresh($("learned"), [name, found.length, found[0]], () =>
    found
      .slice(0, MOST_SAMPLES)
      .map(({ step, sample }) => make("li", {}, make("h4", {}, `Step ${count(step)}`), make("p", {}, sample))),
  );
}
