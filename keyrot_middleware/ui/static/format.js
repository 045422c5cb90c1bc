// How numbers, times and money are written.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const known = (value) => typeof value === "number" && Number.isFinite(value);

export const count = (value) => (known(value) ? whole.format(value) : "–");
export const shortCount = (value) => (known(value) ? (value < 10000 ? whole : short).format(value) : "–");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const sum = (numbers) => (numbers ?? []).reduce((total, number) => total + number, 0);

export function money(value) {
  if (!known(value)) return "–";
  return value === 0 ? "$0" : `$${value.toFixed(value < 1 ? 4 : 2)}`;
}

// What was spent; calls of models without a price are not in it.
export function cost(value, unpriced) {
  if (!unpriced) return money(value);
  return value ? `${money(value)} + no price` : "no price";
}

export function seconds(value) {
  if (!known(value)) return "–";
  if (value < 0.1) return `${Math.round(value * 1000)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

// 12:30:41 in UTC, as in the sentences of the server and in the logs.
export function clock(iso) {
  const time = new Date(iso);
  return Number.isNaN(time.getTime()) ? "–" : time.toISOString().slice(11, 19);
}

export function ago(iso, now) {
  const s = Math.max(0, Math.round((now - Date.parse(iso)) / 1000));
  if (!(s >= 60)) return "just now";
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  return s < 86400 ? `${Math.floor(s / 3600)} h ago` : `${Math.floor(s / 86400)} d ago`;
}

export function countdown(iso, now) {
  const left = Math.ceil((Date.parse(iso) - now) / 1000);
  if (!(left > 0)) return "any moment now";
  if (left < 3600) return `in ${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
  if (left < 48 * 3600) return `in ${Math.floor(left / 3600)} h ${Math.floor((left % 3600) / 60)} min`;
  return `in ${Math.floor(left / 86400)} days`;
}

// The server's sentences are also parts of others; alone they begin with a capital.
export function sentence(text) {
  const written = String(text ?? "");
  return written.charAt(0).toUpperCase() + written.slice(1);
}
