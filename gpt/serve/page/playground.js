// The playground: a model goes on with a prompt, several times side by side.

import { ask, stream } from "./api.js";
import { $, make } from "./dom.js";
import { TokenText } from "./tokens.js";
import { brief, count } from "./words.js";

const ALTERNATIVES = 6;

let running = null; // the AbortController of texts that are being written
let run = null; // the name of the run that is asked

export function setup() {
  $("playground").addEventListener("submit", (event) => {
    event.preventDefault();
    write();
  });
  $("halt").addEventListener("click", halt);
  $("prompt").addEventListener("input", later(showPieces, 250));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running) halt();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#playground")) {
      event.preventDefault();
      $("playground").requestSubmit();
    }
  });
}

// Ask this run's model from now on. `isServed` says whether it can be asked at all.
export function use(name, isServed) {
  $("playground").hidden = !isServed;
  $("not-served").hidden = isServed;
  if (name === run) return;
  halt();
  run = name;
  $("texts").replaceChildren();
  $("speed").textContent = "";
  $("scale").hidden = true;
  showPieces();
}

function halt() {
  running?.abort();
}

async function write() {
  if (running) return;
  running = new AbortController();
  setRunning(true);
  const number = (id) => Number($(id).value);
  const texts = Array.from({ length: number("samples") }, (_, index) => new TokenText(index, number("samples") > 1));
  $("texts").replaceChildren(...texts.map((text) => text.element));
  $("scale").hidden = false;
  const wishes = {
    model: run,
    prompt: $("prompt").value,
    temperature: number("temperature"),
    top_k: number("top-k"),
    top_p: number("top-p"),
    repetition_penalty: number("penalty"),
    max_tokens: number("length"),
    n: texts.length,
    seed: $("seed").value === "" ? null : number("seed"),
    stop: $("stop").value || null,
    logprobs: ALTERNATIVES,
  };
  const began = performance.now();
  let tokens = 0;
  let first = null;
  const tell = (end) => {
    const seconds = (performance.now() - first) / 1000;
    const rate = tokens > texts.length && seconds > 0 ? `, ${brief((tokens - 1) / seconds)} tokens/s` : "";
    $("speed").textContent = `${count(tokens)} tokens${rate}, the first after ${Math.round(first - began)} ms${end}`;
  };
  try {
    for await (const event of stream("v1/completions", wishes, running.signal)) {
      first ??= performance.now();
      for (const choice of event.choices) {
        texts[choice.index].add(choice.logprobs);
        tokens += choice.logprobs.tokens.length;
        if (choice.finish_reason) texts[choice.index].end();
      }
      tell("");
    }
    tell("");
  } catch (error) {
    if (error.name === "AbortError") tell(". Stopped");
    else $("speed").textContent = error.message;
  } finally {
    texts.forEach((text) => text.end());
    running = null;
    setRunning(false);
  }
}

function setRunning(isRunning) {
  $("write").disabled = isRunning;
  $("halt").disabled = !isRunning;
}

async function showPieces() {
  const [asked, text] = [run, $("prompt").value];
  let found;
  try {
    found = text ? await ask(`api/runs/${encodeURIComponent(asked)}/pieces`, { text }) : { pieces: [] };
  } catch (error) {
    $("count").textContent = error.message;
    $("pieces").replaceChildren();
    return;
  }
  if (asked !== run || text !== $("prompt").value) return; // an answer that comes too late
  $("count").textContent = `${count(found.pieces.length)} ${found.pieces.length === 1 ? "token" : "tokens"}:`;
  const shown = found.pieces.slice(0, 200).map((piece) => make("span", { className: "piece" }, piece));
  $("pieces").replaceChildren(...shown, found.pieces.length > 200 ? "…" : "");
}

// A function that calls `action` once it has not been called for so long.
function later(action, milliseconds) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}
