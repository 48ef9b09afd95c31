// The page: looks at the server every now and then, and shows what has changed.

import { ask, setToken } from "./api.js";
import { draw } from "./curves.js";
import { $ } from "./dom.js";
import { linesOf, readOn } from "./logs.js";
import * as playground from "./playground.js";
import { facts, list, samples } from "./runs.js";

const PAUSE = 2000; // milliseconds between two looks

let runs = [];
let chosen = null; // the name of a run
const compared = new Set(); // names of runs whose curves are drawn too
let timer;

function show() {
  list(runs, chosen, compared, {
    choose: (name) => {
      chosen = name;
      look();
      $("run").focus();
    },
    compare: (name, isOn) => {
      if (isOn) compared.add(name);
      else compared.delete(name);
      look();
    },
  });
  const run = runs.find((each) => each.name === chosen);
  $("run").hidden = !run;
  if (!run) return;
  const lines = linesOf(chosen);
  facts(run, lines.findLast((line) => line.tokens_per_second)?.tokens_per_second);
  playground.use(run.name, run.is_served);
  draw(shownRuns(), $("axis").value);
  samples(chosen, lines);
}

const shownRuns = () => [chosen, ...runs.map((run) => run.name).filter((name) => name !== chosen && compared.has(name))];

// Ask the server what is new, show it, and come back later. If it does not answer, say so and go on asking.
async function look() {
  clearTimeout(timer);
  try {
    const told = await ask("api/runs");
    runs = told.runs;
    $("device").textContent = told.device;
    if (!runs.some((run) => run.name === chosen)) chosen = (runs.find((run) => run.state === "training") ?? runs[0])?.name;
    if (chosen) await Promise.all(shownRuns().map((name) => readOn(name, show)));
    $("trouble").hidden = $("login").hidden = true;
    show();
  } catch (error) {
    $("login").hidden = error.status !== 401;
    $("trouble").hidden = error.status === 401;
    $("trouble").textContent = `${error.message} Trying again every ${PAUSE / 1000} s.`;
  }
  clearTimeout(timer);
  timer = setTimeout(look, PAUSE);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

$("theme").addEventListener("click", () => {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  localStorage.setItem("theme", document.documentElement.dataset.theme);
  show();
});
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value);
  look();
});
$("axis").addEventListener("change", show);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer); // nobody looks
  else look();
});

setTheme(document.documentElement.dataset.theme);
playground.setup();
look();
