"use strict";
// Plotly stands in the page as text, and starts when the first chart comes into view. Each chart says the same as a table.

const MOST_ROWS = 40; // defenses in a chart
const MOST_CURVES = 12;
const MOST_LINES = 10;
const PAPER = 680; // pixels of width
let library = null;

function plotly() {
  if (!library) {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly-source").textContent;
    document.head.append(script);
    library = window.Plotly;
  }
  return library;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function colourOf(standing) {
  if (standing === "holds" || standing === "leaks") return colour(standing);
  return ["undecided", "no success", "timed out", "error"].includes(standing) ? colour("open") : colour("idle");
}

/** Text in a chart: Plotly reads a little HTML, which strangers' names must not be. */
function plain(text, most = 34) {
  const cut = text.length > most ? `${text.slice(0, most - 1)}…` : text;
  return cut.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");
}

function draw(place, traces, layout, label) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("soft"), automargin: true };
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("ink"), family: "system-ui, sans-serif", size: 13 },
    margin: { l: 10, r: 20, t: 10, b: 45 },
    hoverlabel: { namelength: -1 },
    showlegend: false,
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
  if ("paper" in document.documentElement.dataset) whole.width = PAPER;
  if (place.classList.contains("empty")) {
    place.classList.remove("empty");
    place.replaceChildren();
  }
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", label);
  place.style.height = `${whole.height}px`;
  plotly().react(place, traces, whole, { responsive: true, displayModeBar: false });
  place.removeAllListeners?.("plotly_click");
  place.on("plotly_click", (event) => {
    const id = event.points[0].customdata;
    if (id) openCell(String(id));
  });
}

function tableBelow(place, head, rows) {
  const cells = (entries, tag) => entries.map((text) => make(tag, {}, text));
  const body = rows.map((row) => make("tr", {}, ...cells(row, "td")));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...cells(head, "th"))), make("tbody", {}, ...body));
  const found = make("details", { class: "below" }, make("summary", {}, "The chart as a table"), make("div", { class: "scroll" }, table));
  place.nextElementSibling?.classList.contains("below") ? place.nextElementSibling.replaceWith(found) : place.after(found);
}

function instead(place, text, code) {
  library?.purge(place);
  place.classList.add("empty");
  place.style.height = "";
  place.removeAttribute("role");
  place.removeAttribute("aria-label");
  place.replaceChildren(make("p", { class: "note" }, make("b", {}, text), code ? " Add to the command: " : "", code ? make("code", {}, code) : ""));
}

function thresholdLine(metric, along) {
  const line = { color: colour("leaks"), width: 2, dash: "dash" };
  const at = metric.threshold;
  return along === "x" ? { type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line } : { type: "line", y0: at, y1: at, xref: "paper", x0: 0, x1: 1, line };
}

function metricTitle(metric) {
  return `${metric.name}${metric.unit ? `, ${metric.unit}` : ""}`;
}

function victimTraces(cells, names) {
  return cells.map((cell, index) => {
    const values = cell.seeds.flatMap((seed) => seed.values).filter((value) => value !== null);
    return {
      type: "box", orientation: "h", x: values, y0: names[index], name: names[index], boxpoints: "all", jitter: 0.5, pointpos: 0, customdata: values.map(() => cell.id),
      marker: { color: colourOf(standingOf(cell)), size: 6, opacity: 0.75 }, line: { color: colour("soft"), width: 1 }, fillcolor: "rgba(0,0,0,0)", hoverinfo: "x+name",
    };
  });
}

function drawVictims() {
  const number = Number(document.getElementById("setting").value);
  const setting = report.settings[number];
  const attack = document.getElementById("attack").value;
  const found = setting.defenses
    .map((row) => (attack ? cellsOfSetting(number).find((cell) => cell.defense === row.defense && cell.attack === attack) : cellById.get(row.strongest)))
    .filter((cell) => cell && cell.seeds.length)
    .sort((one, other) => leakOf(one) - leakOf(other));
  const cells = found.slice(-MOST_ROWS);
  const place = document.getElementById("chart-victims");
  document.getElementById("charted").textContent = `Setting: ${setting.name}. ${found.length > cells.length ? `The ${MOST_ROWS} defenses that leak most. ` : ""}`;
  if (!cells.length) return instead(place, "Not tested.");
  const names = cells.map((cell, index) => `${plain(attack ? cell.defense : `${cell.defense} · ${cell.attack}`, innerWidth < 640 ? 18 : 44)}${"\u200b".repeat(index)}`);
  const layout = { height: 110 + 42 * cells.length, xaxis: { title: { text: metricTitle(setting.metric) } }, shapes: [thresholdLine(setting.metric, "x")] };
  draw(place, victimTraces(cells, names), layout, `Leakage of each victim, by defense; the table below says the same.`);
  const rows = cells.toReversed().map((cell) => {
    const values = cell.seeds.flatMap((seed) => seed.values).filter((value) => value !== null).sort((one, other) => one - other);
    const at = (share) => (values.length ? values[Math.round(share * (values.length - 1))].toFixed(1) : "unknown");
    return [cell.defense, cell.attack, at(0), at(0.5), at(1), shareText(cell.past)];
  });
  tableBelow(place, ["Defense", "Attack", "Least", "Median", "Most", "Past the threshold"], rows);
}

function drawCost() {
  const place = document.getElementById("chart-cost");
  const setting = report.settings[Number(document.getElementById("setting").value)];
  const rows = setting.defenses.filter((row) => row.cost && row.worst.mean !== null).slice(0, 200);
  if (!rows.some((row) => row.defense !== "none")) {
    place.nextElementSibling?.classList.contains("below") && place.nextElementSibling.remove();
    return instead(place, "Not tested: what the defenses cost.", "--gitbench-cost yes");
  }
  const spread = (bounds) => ({
    type: "data", symmetric: false, color: colour("soft"), thickness: 1,
    array: bounds.map((one) => (one.high ?? one.mean) - one.mean), arrayminus: bounds.map((one) => one.mean - (one.low ?? one.mean)),
  });
  const lost = rows.map((row) => row.cost.lost);
  const worst = rows.map((row) => row.worst);
  const trace = {
    type: "scatter", mode: rows.length > 12 || innerWidth < 640 ? "markers" : "markers+text", cliponaxis: false,
    textposition: lost.map((one) => (one.mean > Math.max(...lost.map((other) => other.mean)) / 2 ? "top left" : "top right")),
    x: lost.map((one) => one.mean), y: worst.map((one) => one.mean), error_x: spread(lost), error_y: spread(worst),
    text: rows.map((row) => plain(row.defense)), customdata: rows.map((row) => row.strongest), hovertemplate: "%{text}<br>lost %{x:.1f} %<br>worst case %{y:.1f}<extra></extra>",
    marker: { size: 11, color: rows.map((row) => colourOf(row.defense === "none" ? "control" : row.standing)) },
  };
  const layout = {
    height: 380, shapes: [thresholdLine(setting.metric, "y")],
    xaxis: { title: { text: "accuracy lost, percentage points" } }, yaxis: { title: { text: `worst case${setting.metric.unit ? `, ${setting.metric.unit}` : ""}` } },
  };
  draw(place, [trace], layout, `Leakage against accuracy lost, by defense, in ${setting.name}; the table below says the same. Down and left is better.`);
  tableBelow(
    place,
    ["Defense", "Accuracy lost", "Worst case", "On the front", "ε", "Bytes of an update", "ms of a client", "Left to learn (cosine)"],
    rows.map((row) => [
      row.defense, costText(row) || "control", figure(setting.metric, row.worst), row.cost.front ? "yes" : "no",
      row.cost.epsilon === null ? "none promised" : `${row.cost.epsilon} at δ = ${row.cost.delta}`, row.cost.bytes_sent?.toFixed(0) ?? "unknown", row.cost.seconds === null ? "unknown" : (1000 * row.cost.seconds).toFixed(2),
      row.left_to_learn === null ? "not tested" : row.left_to_learn.toFixed(2),
    ]),
  );
}

function drawCurves() {
  const place = document.getElementById("chart-curves");
  const groups = new Map();
  for (const curve of report.curves) {
    const key = `${curve.attack} on ${curve.where}, by ${curve.title}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(curve);
  }
  place.className = "curves";
  const shownGroups = [...groups].slice(0, MOST_CURVES);
  const charts = new Map(shownGroups.map(([title]) => [title, make("div", { class: "chart" })]));
  // All are in place before the first is drawn: only then is it known how wide each is.
  place.replaceChildren(...shownGroups.map(([title]) => make("div", {}, make("h4", {}, title), charts.get(title))));
  for (const [title, curves] of shownGroups) {
    const chart = charts.get(title);
    const metric = metricOf(cellById.get(curves[0].points[0].cell));
    const drawnCurves = curves.slice(0, MOST_LINES);
    const traces = drawnCurves.map((curve, index) => ({
      type: "scatter", mode: "lines+markers", marker: { symbol: index % 8, size: 9 }, line: { dash: ["solid", "dash", "dot", "dashdot"][index % 4] }, name: plain(curve.defense), x: curve.points.map((point) => point.at), y: curve.points.map((point) => point.value.mean),
      customdata: curve.points.map((point) => point.cell),
      error_y: {
        type: "data", symmetric: false, thickness: 1,
        array: curve.points.map(({ value }) => (value.high ?? value.mean) - value.mean), arrayminus: curve.points.map(({ value }) => value.mean - (value.low ?? value.mean)),
      },
    }));
    const layout = {
      height: 300 + 20 * drawnCurves.length, margin: { l: 10, r: 20, t: 10, b: 55 + 20 * drawnCurves.length }, showlegend: true,
      legend: { x: 0, yref: "container", y: 0, yanchor: "bottom" }, shapes: [thresholdLine(metric, "y")],
      xaxis: { title: { text: curves[0].title }, tickvals: [...new Set(curves.flatMap((curve) => curve.points.map((point) => point.at)))] }, yaxis: { title: { text: metricTitle(metric) } },
    };
    draw(chart, traces, layout, `${title}; the table below says the same.`);
    tableBelow(chart, ["Defense", curves[0].title, metric.name], curves.flatMap((curve) => curve.points.map((point) => [curve.defense, String(point.at), figure(metric, point.value)])));
  }
  if (groups.size > MOST_CURVES) place.append(make("p", { class: "note" }, `${groups.size - MOST_CURVES} more are in the data.`));
}

function drawCell(cell, place) {
  const setting = report.settings[cell.setting];
  const control = cellsOfSetting(cell.setting).find((one) => one.defense === "none" && one.attack === cell.attack && one !== cell);
  const cells = [control, cell].filter((one) => one && one.seeds.some((seed) => seed.values.some((value) => value !== null)));
  if (!cells.length) return instead(place, "Not tested.");
  const names = cells.map((one) => (one === cell && one.defense !== "none" ? "defended" : "undefended"));
  const layout = { height: 110 + 50 * cells.length, xaxis: { title: { text: metricTitle(setting.metric) } }, shapes: [thresholdLine(setting.metric, "x")] };
  draw(place, victimTraces(cells, names), layout, "Leakage of each victim, with and without the defense; the table below says the same.");
}

const CHARTS = { "chart-victims": drawVictims, "chart-cost": drawCost, "chart-curves": drawCurves };
const drawn = new Set();

function drawChart(id) {
  drawn.add(id);
  CHARTS[id]();
}

/** Draw again what has been drawn: another setting, other colours. */
function redrawCharts() {
  for (const id of drawn) CHARTS[id]();
}
