// Light or dark, as the system has it until the user says otherwise. Runs before the page is drawn, so it never flashes.
"use strict";
{
  const saved = localStorage.getItem("theme");
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = saved ?? system;
}
