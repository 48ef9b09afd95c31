// Elements are made here, and text is only ever inserted as text.

export const $ = (id) => document.getElementById(id);

// make("li", { className: "x" }, "text", child): an element with properties and children.
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
