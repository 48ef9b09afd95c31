// The logs of runs, which grow while these train. Each log is read once, and then only its new lines.

import { ask } from "./api.js";

const logs = new Map(); // by the run's name: { lines, next }

export const linesOf = (name) => logs.get(name)?.lines ?? [];

// Read what is new in a run's log. A long one comes in parts: calls onPart() after each but the last.
export async function readOn(name, onPart) {
  for (;;) {
    const log = logs.get(name) ?? { lines: [], next: "" };
    const part = await ask(`api/runs/${encodeURIComponent(name)}/log?from=${encodeURIComponent(log.next)}`);
    const before = part.is_new ? [] : log.lines;
    logs.set(name, { lines: before.concat(part.lines), next: part.next });
    if (!part.has_more) return;
    onPart();
  }
}
