"use strict";
// Everything that the page shows was written by strangers in part: text is set as text, never as HTML.

const report = JSON.parse(document.getElementById("gitbench-data").textContent);
const cellById = new Map(report.cells.map((cell) => [cell.id, cell]));
const symbols = Object.fromEntries(
  [...document.querySelectorAll(".legend dt .badge")].map((one) => [one.dataset.standing, one.firstElementChild.textContent]),
);

/** A new element. Attributes that are false, null or undefined are left out; functions listen to the event of their name. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function metricOf(cell) {
  return report.settings[cell.setting].metric;
}

/** `+16.5 dB [14.3, 18.9]`; `digits` are those behind the point. */
function figure(metric, value, { unit = true, digits = Math.max(1, metric.digits - 1) } = {}) {
  if (!value || value.mean === null) return "unknown";
  const sign = metric.name.endsWith("gain") && value.mean >= 0 ? "+" : "";
  const bounds = value.low === null || value.high === null ? "" : ` [${value.low.toFixed(digits)}, ${value.high.toFixed(digits)}]`;
  return `${sign}${value.mean.toFixed(digits)}${unit && metric.unit ? ` ${metric.unit}` : ""}${bounds}`;
}

function percent(share) {
  return `${(100 * share).toFixed(0)} %`;
}

/** `94 % of 16 [72, 99]`: a share with its interval. */
function shareText(found) {
  if (!found) return "not tested";
  return `${percent(found.share)} of ${found.victims} [${(100 * found.low).toFixed(0)}, ${(100 * found.high).toFixed(0)}]`;
}

/** The verdict as it is shown: an undefended cell is no leak, it shows that the attack works. */
function standingOf(cell) {
  if (cell.defense !== "none") return cell.standing;
  if (cell.standing === "leaks") return "control";
  return ["holds", "undecided"].includes(cell.standing) ? "no control" : cell.standing;
}

/** How much leaks, so that more is larger; what is not known sorts last. */
function leakOf(cell) {
  if (!cell || cell.value.mean === null) return Number.NEGATIVE_INFINITY;
  return metricOf(cell).higher_leaks ? cell.value.mean : -cell.value.mean;
}

function badge(standing) {
  return make("span", { class: "badge", "data-standing": standing }, make("span", { "aria-hidden": "true" }, symbols[standing] || "·"), ` ${standing}`);
}

let pictures = null;
/** One picture, by its name; they are read when the first one is asked for. */
function picture(name, alt) {
  pictures ??= JSON.parse(document.getElementById("gitbench-pictures").textContent);
  return make("img", { src: `data:image/png;base64,${pictures[name]}`, alt });
}
