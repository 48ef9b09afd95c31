// A text whose tokens are colored by how likely they were, with the alternatives of the one that is pointed at.

import { $, make } from "./dom.js";
import { percent } from "./words.js";

const LIMITS = [0.05, 0.2, 0.5, 0.8]; // probabilities at which the color changes: .p0 to .p4 in style.css

export class TokenText {
  constructor(index, isOneOfMany) {
    this.text = make("div", { className: "text", tabIndex: 0 });
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-label", `Text ${index + 1}`);
    this.element = make("article", {}, isOneOfMany ? make("h4", {}, `Sample ${index + 1}`) : null, this.text);
    this.element.setAttribute("aria-busy", "true");
    this.told = new WeakMap(); // what is known of each token's element
    this.text.addEventListener("pointerover", (event) => this.show(event.target));
    this.text.addEventListener("pointerleave", hide);
    this.text.addEventListener("click", (event) => this.show(event.target)); // a finger does not hover
    this.text.addEventListener("focusin", (event) => this.show(event.target));
    this.text.addEventListener("focusout", hide);
    this.text.addEventListener("keydown", (event) => this.move(event));
  }

  // Append tokens, as the API tells them.
  add({ tokens, token_logprobs: logprobs, top_logprobs: tops }) {
    const made = tokens.map((token, number) => {
      const probability = Math.exp(logprobs[number]);
      const level = LIMITS.filter((limit) => probability >= limit).length;
      const element = make("span", { className: `token p${level}`, tabIndex: -1 }, token);
      this.told.set(element, { token, probability, top: Object.entries(tops[number] ?? {}) });
      return element;
    });
    this.text.append(...made);
  }

  end() {
    this.element.setAttribute("aria-busy", "false");
  }

  move(event) {
    const steps = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const here = event.target.closest(".token");
    (here ? here[steps[event.key]] : this.text.firstElementChild)?.focus();
  }

  show(target) {
    const element = target.closest?.(".token");
    const told = element && this.told.get(element);
    if (!told) return;
    const rows = told.top.map(([text, logprob]) => {
      const bar = make("meter", { min: 0, max: 1, value: Math.exp(logprob) });
      const row = make("li", {}, make("code", {}, visible(text)), bar, make("span", {}, percent(Math.exp(logprob))));
      row.classList.toggle("drawn", text === told.token);
      return row;
    });
    const box = $("alternatives");
    box.replaceChildren(make("p", {}, `${visible(told.token)}: ${percent(told.probability)}`), make("ul", {}, ...rows));
    element.setAttribute("aria-describedby", "alternatives");
    box.hidden = false;
    const place = element.getBoundingClientRect();
    const [width, height] = [box.offsetWidth, box.offsetHeight];
    const above = place.bottom + height + 8 > innerHeight && place.top > height + 8;
    box.style.left = `${Math.max(8, Math.min(place.left, innerWidth - width - 8))}px`;
    box.style.top = `${above ? place.top - height - 4 : place.bottom + 4}px`;
  }
}

function hide() {
  $("alternatives").hidden = true;
}

// White space that can be seen.
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "(part of a character)";
