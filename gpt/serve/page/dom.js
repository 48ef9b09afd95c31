// Elements are made here, and text is only ever inserted as text.

export const $ = (id) => document.getElementById(id);

// Set a property, unless it has this value already: what a user selects or clicks stays as it is.
export function set(element, name, value) {
  if (element[name] !== value) element[name] = value;
}

// Give an element children anew, unless those it has were made from the same values.
const made = new WeakMap();
export function refresh(element, values, children) {
  const key = JSON.stringify(values);
  if (made.get(element) === key) return;
  made.set(element, key);
  element.replaceChildren(...children());
}

// make("li", { className: "x" }, "text", child): an element with properties and children.
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
