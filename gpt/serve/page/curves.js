// Curves of one run or several, each quantity in a plot of its own. uPlot draws.

import { $, make } from "./dom.js";
import { brief, duration } from "./words.js";
import { linesOf } from "./logs.js";

const LARGEST_LOSS = 20; // nats per token, that a plot has room for: those of a run that diverged would press others flat
const PANELS = [
  { title: "Loss (nats per token)", keys: [["loss", "training"], ["val_loss", "validation"]], height: 280, wide: true, most: LARGEST_LOSS },
  { title: "Learning rate", keys: [["lr", ""]], height: 140 },
  { title: "Gradient norm", keys: [["grad_norm", ""]], height: 140, logarithmic: true },
  { title: "Tokens per second", keys: [["tokens_per_second", ""]], height: 140 },
];
const COLORS = 12; // --curve-0 to --curve-11 in style.css: two of each hue, the stronger one second
const DASHES = [[], [8, 4], [2, 3]]; // when all hues are taken

let plots = []; // { plot, panel, figure } of what is on the page
let drawn = ""; // names and axis of that

// Draw the curves of these runs over `axis`, a key of the log's lines. If they are there already, move them on.
export function draw(names, axis) {
  const key = JSON.stringify([names, axis, document.documentElement.dataset.theme]);
  if (key !== drawn) {
    plots.forEach(({ plot }) => plot.destroy());
    $("curves").replaceChildren();
    plots = PANELS.map((panel) => makePlot(panel, names, axis));
    drawn = key;
  }
  let points = 0;
  for (const { plot, panel, figure } of plots) {
    const data = dataOf(panel, names, axis);
    figure.hidden = data[0].length === 0;
    points += data[0].length;
    plot.setData(data);
    figure.setAttribute("aria-label", described(panel, names));
  }
  $("no-curves").hidden = points > 0;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function dataOf(panel, names, axis) {
  const tables = names.flatMap((name) =>
    panel.keys.map(([key]) => {
      const lines = linesOf(name).filter((line) => isNumber(line[axis]) && isNumber(line[key]));
      const usable = panel.logarithmic ? lines.filter((line) => line[key] > 0) : lines;
      return [usable.map((line) => line[axis]), usable.map((line) => line[key])];
    }),
  );
  return uPlot.join(tables);
}

// For those who do not see the plot: the last value of each curve.
function described(panel, names) {
  const told = names.flatMap((name) =>
    panel.keys.flatMap(([key, label]) => {
      const last = linesOf(name).findLast((line) => isNumber(line[key]));
      return last ? [`${name} ${label} ${last[key].toPrecision(4)} at step ${last.step}`] : [];
    }),
  );
  return `${panel.title}: ${told.join(", ") || "nothing yet"}`;
}

function makePlot(panel, names, axis) {
  const figure = make("figure", { className: panel.wide ? "wide" : "" }, make("figcaption", {}, panel.title));
  figure.setAttribute("role", "img");
  $("curves").append(figure);
  const lines = { stroke: color("faint"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false } };
  const sparse = panel.logarithmic ? { grid: { show: false } } : {}; // a logarithmic axis has too many lines
  // The legend has the values under the pointer, or else the last ones.
  const said = (words) => (plot, number, series, index) => {
    const value = index === null ? plot.data[series].findLast(isNumber) : number;
    return isNumber(value) ? words(value) : "–";
  };
  const series = names.flatMap((name, number) =>
    panel.keys.map(([key, label]) => ({
      label: [names.length > 1 ? name : "", label].filter(Boolean).join(", ") || name,
      ...styleOf(number, key),
      width: key === "val_loss" ? 2 : 1.5,
      points: { show: key === "val_loss", size: 6 },
      spanGaps: true,
      value: said(shown),
    })),
  );
  const options = {
    width: figure.clientWidth,
    height: panel.height,
    scales: { x: { time: false }, y: panel.logarithmic ? { distr: 3 } : { range: rangeUpTo(panel.most) } },
    axes: [
      { ...lines, size: 34, values: (_, ticks) => ticks.map(axis === "time" ? durationOrZero : brief) },
      { ...lines, ...sparse, size: 52, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : shown(tick))) },
    ],
    legend: { show: panel.wide === true },
    series: [{ label: axis, value: said(axis === "time" ? durationOrZero : brief) }, ...series],
    cursor: { y: false },
  };
  const plot = new uPlot(options, [[], ...series.map(() => [])], figure);
  new ResizeObserver(() => {
    if (figure.clientWidth > 0) plot.setSize({ width: figure.clientWidth, height: panel.height });
  }).observe(figure);
  return { plot, panel, figure };
}

// The ends of an axis, for uPlot. Values above `most` are left out of view if there are others.
const rangeUpTo = (most) => (plot, low, high) => {
  if (low === null) return [null, null];
  let top = high;
  if (high > most && low <= most) {
    top = low;
    for (const values of plot.data.slice(1)) for (const value of values) if (value <= most && value > top) top = value;
  }
  return uPlot.rangeNum(low, top, 0.1, true);
};

// The color and the dashes of a quantity of run `number`.
export function styleOf(number, key) {
  const place = 2 * number;
  return {
    stroke: color(`curve-${(place + (key === "loss" ? 0 : 1)) % COLORS}`),
    dash: DASHES[Math.floor(place / COLORS) % DASHES.length],
  };
}

const durationOrZero = (seconds) => (seconds > 0 ? duration(seconds) : "0");

// "2.5", "1.2e-4", "5.04k"
function shown(number) {
  if (number === 0) return "0";
  if (Math.abs(number) >= 1000) return brief(number, 2);
  return Math.abs(number) < 0.001 ? number.toExponential(1) : String(Number(number.toPrecision(4)));
}

// The color that style.css gives a name in this theme: a canvas cannot read CSS variables.
function color(name) {
  const probe = make("span", { hidden: true });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
