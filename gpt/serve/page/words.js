// Numbers in words.

const grouped = new Intl.NumberFormat("en");

export const count = (number) => grouped.format(number);

// "312", "33.7k", "50k", "3.5M", "9.0e+12"
export function brief(number, decimals = 1) {
  let left = number;
  for (const unit of ["", "k", "M", "G"]) {
    if (Math.abs(left) < 999.5) return unit ? `${Number(left.toFixed(decimals))}${unit}` : String(Math.round(left));
    left /= 1000;
  }
  return number.toExponential(1);
}

// "3.2926", and "8.2e+12" for the loss of a run that diverges
export const lossText = (loss, digits = 4) => (loss < 1000 ? loss.toFixed(digits) : loss.toExponential(1));

// "45 s", "12 min", "3 h 20 min"
export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// "312 MiB"
export function size(bytes) {
  for (const unit of ["bytes", "KiB", "MiB"]) {
    if (bytes < 1024) return `${Math.round(bytes)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} GiB`;
}

// "41 %", "0.3 %"
export function percent(probability) {
  const value = 100 * probability;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value.toFixed(value < 10 && value > 0 ? 1 : 0)} %`;
}
