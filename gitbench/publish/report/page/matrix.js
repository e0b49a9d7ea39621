"use strict";
// The matrix of one setting, and the list of all cells. Both show what the filters leave, a page at a time.

const ROWS = innerWidth < 640 ? 10 : 20; // of the list on a page
const CELLS = 600; // of the matrix on a page
const shown = { cells: report.cells, grid: { key: "standing", down: true, page: 0 }, list: { key: "verdict", down: true, page: 0 } };
const gravity = ["control", "holds", "n/a", "not tested", "no control", "undecided", "no success", "timed out", "error", "leaks"];

const COLUMNS = [
  { key: "setting", title: "Setting", value: (cell) => report.settings[cell.setting].name },
  { key: "defense", title: "Defense", value: (cell) => cell.defense },
  { key: "attack", title: "Attack", value: (cell) => cell.attack },
  { key: "verdict", title: "Verdict", value: (cell) => gravity.indexOf(standingOf(cell)), show: (cell) => badge(standingOf(cell)) },
  { key: "leak", title: "Leakage [95 %]", value: leakOf, show: (cell) => figure(metricOf(cell), cell.value), figure: true },
  { key: "past", title: "Victims past it", value: (cell) => (cell.past ? cell.past.share : -1), show: (cell) => shareText(cell.past), figure: true },
  { key: "identified", title: "Identified", value: (cell) => (cell.identified ? cell.identified.share : -1), show: (cell) => shareText(cell.identified), figure: true },
  { key: "flags", title: "Flags", value: (cell) => cell.flags.length, show: (cell) => cell.flags.join(", ") },
];

function filtered() {
  const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const verdict = document.getElementById("verdict").value;
  const flag = document.getElementById("flag").value;
  return report.cells.filter((cell) => {
    if (verdict && standingOf(cell) !== verdict) return false;
    if (flag && !cell.flags.includes(flag)) return false;
    const text = `${cell.defense} ${cell.attack} ${report.settings[cell.setting].name}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/** For sorting, also of figures that are not known (minus infinity). */
function compared(one, other) {
  if (one === other) return 0;
  return one < other ? -1 : 1;
}

/** A heading that sorts; the first click sorts figures downwards and names upwards. */
function heading(title, key, state, redraw, isName) {
  const active = state.key === key;
  const sort = () => {
    state.down = active ? !state.down : !isName;
    Object.assign(state, { key, page: 0 });
    redraw(key);
  };
  const arrow = active ? (state.down ? " ↓" : " ↑") : "";
  const button = make("button", { type: "button", "data-sort": key, click: sort }, `${title}${arrow}`);
  return make("th", { scope: "col", "aria-sort": active ? (state.down ? "descending" : "ascending") : "none" }, button);
}

function pager(state, pages, redraw, what) {
  if (pages < 2) return "";
  const turn = (step) => () => {
    state.page += step;
    redraw();
  };
  return make(
    "div",
    { class: "pager", role: "group", "aria-label": `Pages of the ${what}` },
    make("button", { type: "button", disabled: state.page === 0, click: turn(-1) }, "Previous"),
    `page ${state.page + 1} of ${pages}`,
    make("button", { type: "button", disabled: state.page === pages - 1, click: turn(1) }, "Next"),
  );
}

/** Put new content in, and the focus back on the heading that was pressed. */
function put(place, key, ...content) {
  place.replaceChildren(...content.filter(Boolean));
  if (key) place.querySelector(`[data-sort="${CSS.escape(key)}"]`)?.focus();
}

function drawList(key = null, rows = ROWS) {
  const state = shown.list;
  const column = COLUMNS.find((one) => one.key === state.key);
  const order = shown.cells.map((cell) => [column.value(cell), cell]).sort((one, other) => compared(one[0], other[0]) * (state.down ? -1 : 1) || compared(leakOf(other[1]), leakOf(one[1])));
  const pages = Math.ceil(order.length / rows);
  state.page = Math.max(0, Math.min(state.page, pages - 1));
  const body = order.slice(state.page * rows, (state.page + 1) * rows).map(([, cell]) => {
    const entries = COLUMNS.map((one) => {
      const content = one.show ? one.show(cell) : one.value(cell);
      if (one.key !== "attack") return make("td", { "data-label": one.title, class: one.figure ? "figure" : null }, content);
      const name = `${cell.attack} on ${cell.defense}: look at it`;
      return make("td", { "data-label": one.title }, make("button", { type: "button", class: "link", "data-open": cell.id, "aria-label": name }, cell.attack));
    });
    return make("tr", {}, ...entries);
  });
  const names = ["setting", "defense", "attack"];
  const head = COLUMNS.map((one) => heading(one.title, one.key, state, drawList, names.includes(one.key)));
  const table = make("table", { class: "stack", "aria-labelledby": "list-title" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  put(document.getElementById("list"), key, make("div", { class: "scroll" }, table), pager(state, pages, drawList, "list"));
}

/** What the matrix is sorted by: the name, a figure of the row, or an attack's cell. */
function rowValue(row, cells, key) {
  if (key === "defense") return row.defense;
  if (key === "standing") return row.defense === "none" ? -1 : gravity.indexOf(row.standing);
  if (key === "worst") return row.worst.mean ?? Number.NEGATIVE_INFINITY;
  if (key === "cost") return row.cost?.lost.mean ?? Number.NEGATIVE_INFINITY;
  return leakOf(cells.get(key.slice("attack:".length)));
}

function gridCell(cell, matches) {
  if (!cell) return make("td", {}, "");
  const value = cell.value.mean === null ? "" : figure(metricOf(cell), { ...cell.value, low: null }, { unit: false });
  const bounds = cell.value.low === null ? "" : figure(metricOf(cell), cell.value, { unit: false }).replace(/^[^[]*/, "");
  const standing = standingOf(cell);
  const name = `${cell.attack} on ${cell.defense}: ${standing}${cell.value.mean === null ? "" : `, ${figure(metricOf(cell), cell.value)}`}`;
  const content = [make("b", {}, `${symbols[standing]} ${value || standing}`), bounds && make("small", {}, bounds)];
  return make(
    "td",
    {},
    make("button", { type: "button", class: matches.has(cell.id) ? "cell" : "cell dim", "data-standing": standing, "data-open": cell.id, "aria-label": name }, ...content),
  );
}

/** A name that may be broken after punctuation, and not within a word. */
function breakable(text) {
  return text.split(/(?<=[(,|=_:/])/).flatMap((part) => [part, make("wbr")]);
}

/** A figure above its interval. */
function twoLines(text) {
  const at = text.indexOf(" [");
  return make("td", { class: "figure" }, ...(at < 0 ? [text] : [text.slice(0, at), make("small", {}, text.slice(at + 1))]));
}

function drawGrid(key = null) {
  const state = shown.grid;
  const number = Number(document.getElementById("setting").value);
  const setting = report.settings[number];
  const here = shown.cells.filter((cell) => cell.setting === number);
  const matches = new Set(here.map((cell) => cell.id));
  const attacks = setting.attacks.filter((attack) => here.some((cell) => cell.attack === attack));
  const wanted = new Set(here.map((cell) => cell.defense));
  const byDefense = new Map();
  for (const cell of cellsOfSetting(number)) {
    if (!byDefense.has(cell.defense)) byDefense.set(cell.defense, new Map());
    byDefense.get(cell.defense).set(cell.attack, cell);
  }
  const order = setting.defenses
    .filter((row) => wanted.has(row.defense))
    .map((row) => [rowValue(row, byDefense.get(row.defense), state.key), row])
    .sort((one, other) => compared(one[0], other[0]) * (state.down ? -1 : 1))
    .map(([, row]) => row);
  const rows = Math.max(5, Math.floor(CELLS / Math.max(1, attacks.length)));
  const pages = Math.ceil(order.length / rows);
  state.page = Math.max(0, Math.min(state.page, pages - 1));
  const body = order.slice(state.page * rows, (state.page + 1) * rows).map((row) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("code", {}, ...breakable(row.defense))),
      make("td", {}, badge(row.defense === "none" ? "control" : row.standing)),
      twoLines(figure(setting.metric, row.worst, { unit: false })),
      twoLines(costText(row)),
      ...attacks.map((attack) => gridCell(byDefense.get(row.defense).get(attack), matches)),
    ),
  );
  const head = [
    heading("Defense", "defense", state, drawGrid, true),
    heading("Verdict", "standing", state, drawGrid),
    heading(`Worst case${setting.metric.unit ? `, ${setting.metric.unit}` : ""}`, "worst", state, drawGrid),
    heading("Accuracy lost", "cost", state, drawGrid),
    ...attacks.map((attack) => heading(attack, `attack:${attack}`, state, drawGrid)),
  ];
  const table = make("table", { class: "grid", "aria-labelledby": "matrix-title" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  const content = order.length ? make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Matrix of one setting" }, table) : make("p", {}, "No cell of this setting passes the filters.");
  put(document.getElementById("grid"), key, content, pager(state, pages, drawGrid, "matrix"));
}

function costText(row) {
  if (row.defense === "none") return "";
  const lost = row.cost?.lost;
  if (!lost || lost.mean === null) return "not tested";
  return `${lost.mean >= 0 ? "+" : ""}${lost.mean.toFixed(1)} % [${lost.low.toFixed(1)}, ${lost.high.toFixed(1)}]`;
}

const cellsBySetting = new Map();
function cellsOfSetting(number) {
  if (!cellsBySetting.size) {
    for (const cell of report.cells) {
      if (!cellsBySetting.has(cell.setting)) cellsBySetting.set(cell.setting, []);
      cellsBySetting.get(cell.setting).push(cell);
    }
  }
  return cellsBySetting.get(number) || [];
}

function drawMatrix() {
  shown.cells = filtered();
  shown.grid.page = shown.list.page = 0;
  drawGrid();
  drawList();
  document.getElementById("status").textContent = `${shown.cells.length} of ${report.cells.length} cells pass the filters.`;
}
