// The list of runs, and the facts about the one that was chosen.

import { $, make } from "./dom.js";
import { brief, count, duration, size } from "./words.js";

// Show the runs. `chosen` is the name of one; `compared` a set of names whose curves are drawn too. A click on a run
// calls choose(name), a click on a box compare(name, whether).
export function list(runs, chosen, compared, { choose, compare }) {
  $("no-runs").hidden = runs.length > 0;
  const focused = document.activeElement?.id;
  $("runs").replaceChildren(
    ...runs.map((run) => {
      const button = make(
        "button",
        { type: "button", id: `choose-${run.name}`, onclick: () => choose(run.name) },
        make("strong", {}, run.name),
        make("span", { className: `state ${run.state}` }, run.state),
        make("span", { className: "hint" }, progress(run)),
      );
      if (run.name === chosen) button.setAttribute("aria-current", "true");
      const box = make("input", {
        type: "checkbox",
        id: `compare-${run.name}`,
        checked: run.name === chosen || compared.has(run.name),
        disabled: run.name === chosen,
        onchange: (event) => compare(run.name, event.target.checked),
      });
      box.setAttribute("aria-label", `Draw the curves of ${run.name} too`);
      return make("li", {}, box, button);
    }),
  );
  if (focused) $(focused)?.focus(); // the list was made anew under the keyboard's focus
}

function progress(run) {
  const parts = [];
  if (run.step !== null) parts.push(`step ${count(run.step)} of ${count(run.steps)}`);
  if (run.best_val_loss !== null) parts.push(`best ${run.best_val_loss.toFixed(3)}`);
  return parts.join(", ");
}

// The facts about a run: `speed` is the last one it logged, in tokens per second.
export function facts(run, speed) {
  const model = run.model;
  const told = [
    ["State", run.step === null ? run.state : `${run.state}, step ${count(run.step)} of ${count(run.steps)}`],
    ["Loss", run.loss?.toFixed(4)],
    ["Best validation loss", run.best_val_loss && `${run.best_val_loss.toFixed(4)} at step ${count(run.best_step)}`],
    ["Speed", speed && `${brief(speed)} tokens/s`],
    ["Trained on", run.tokens && `${brief(run.tokens)} tokens in ${duration(run.seconds)}`],
    ["Parameters", run.parameters && count(run.parameters)],
    ["Model", model && `${model.num_layers} layers of ${model.embed_dim}, ${model.num_heads} heads`],
    ["Context", model && `${count(model.max_seq_len)} tokens`],
    ["Vocabulary", model && `${count(model.vocab_size)} tokens`],
    ["On disk", size(run.disk_bytes)],
  ];
  $("name").textContent = run.name;
  $("facts").replaceChildren(
    ...told.filter(([, fact]) => fact).map(([name, fact]) => make("div", {}, make("dt", {}, name), make("dd", {}, fact))),
  );
}

// The samples in a run's log, the latest first.
export function samples(lines) {
  const found = lines.filter((line) => typeof line.sample === "string").reverse();
  $("no-samples").hidden = found.length > 0;
  if ($("learned").childElementCount === found.length && found.length === 0) return;
  $("learned").replaceChildren(
    ...found.slice(0, 100).map((line) => make("li", {}, make("h4", {}, `Step ${count(line.step)}`), make("p", {}, line.sample))),
  );
}
