"use strict";

/** The victims of a cell, over all seeds, the one that leaks most first. */
function victimsOf(cell) {
  const sign = metricOf(cell).higher_leaks ? 1 : -1;
  const found = cell.seeds.flatMap((seed) =>
    seed.values.map((value, number) => ({
      seed: seed.seed,
      number,
      value,
      identified: seed.identified ? seed.identified[number] : null,
      certified: seed.certified ? seed.certified[number] : null,
      truth: seed.truth[number] || null,
      found: seed.found[number] || null,
    })),
  );
  const leak = (one) => (one.value === null ? Number.NEGATIVE_INFINITY : sign * one.value);
  return found.sort((one, other) => leak(other) - leak(one));
}

function victimName(cell, victim) {
  return `victim ${victim.number}${cell.seeds.length > 1 ? ` of seed ${victim.seed}` : ""}`;
}

function victimFigure(cell, victim) {
  return figure(metricOf(cell), { mean: victim.value, low: null, high: null });
}

function recognised(victim, images) {
  if (victim.identified === null) return "not tested";
  if (images === 1) return victim.identified === 1 ? "yes" : "no";
  return percent(victim.identified);
}

/** The truth and the reconstruction of one victim: side by side, and one over the other with a slider. */
function stage(cell, victim) {
  const name = victimName(cell, victim);
  const compare = make("div", { class: "compare" }, picture(victim.truth, `truth of ${name}`), picture(victim.found, `reconstruction of ${name}`));
  const move = (event) => compare.style.setProperty("--cut", `${event.target.value}%`);
  const slider = make("input", { type: "range", min: 0, max: 100, value: 50, input: move, "aria-label": "How much of the truth covers the reconstruction" });
  const images = report.settings[cell.setting].batch_size;
  const told = [`${name}: ${victimFigure(cell, victim)}`, `identified: ${recognised(victim, images)}`];
  if (victim.certified) told.push("the attacker knows that it is right");
  if (images > 1) told.push(`the first of its ${images} images`);
  return make(
    "div",
    { class: "stage", id: "stage" },
    make("figure", { class: "side" }, picture(victim.truth, `truth of ${name}`), make("figcaption", {}, "Truth")),
    make("figure", { class: "side" }, picture(victim.found, `reconstruction of ${name}`), make("figcaption", {}, "Reconstruction")),
    make("figure", {}, compare, slider, make("figcaption", {}, "Truth left of the line, reconstruction right of it")),
    make("p", { role: "status" }, told.join("; "), "."),
  );
}

/** All victims with a picture as buttons, the worst first; the chosen one stands on the stage. */
function gallery(cell) {
  const all = victimsOf(cell);
  const shown = all.filter((victim) => victim.truth && victim.found);
  if (!shown.length) return make("p", { class: "note" }, whyNoPictures(cell));
  const place = make("div", {}, stage(cell, shown[0]));
  const buttons = shown.map((victim, index) =>
    make(
      "button",
      {
        type: "button",
        "aria-pressed": String(index === 0),
        "aria-label": `${victimName(cell, victim)}: ${victimFigure(cell, victim)}`,
        click: (event) => {
          for (const other of buttons) other.setAttribute("aria-pressed", String(other === event.currentTarget));
          place.replaceChildren(stage(cell, victim));
        },
      },
      picture(victim.truth, ""),
      picture(victim.found, ""),
      figure(metricOf(cell), { mean: victim.value, low: null, high: null }, { unit: false }),
    ),
  );
  const parts = [place, make("p", { class: "note" }, "All victims with a picture, the worst first; the truth above the reconstruction.")];
  parts.push(make("ul", { class: "thumbs" }, ...buttons.map((button) => make("li", {}, button))));
  if (!all[0].truth) {
    const worst = `The worst victim is ${victimName(cell, all[0])} (${victimFigure(cell, all[0])}).`;
    parts.push(make("p", { class: "note" }, `Pictures are kept of the first ${shown.length} victims only. ${worst}`));
  }
  return make("div", {}, ...parts);
}

function whyNoPictures(cell) {
  const setting = report.settings[cell.setting];
  if (setting.redacted) return `Pictures are left out: the images of ${setting.dataset} are private. gitbench report --no-redact shows them.`;
  if (!cell.seeds.length) return "There is nothing to look at: this cell was not measured.";
  if (report.pictures_left_out) return "The picture is left out, so that the page stays light. It is in the results folder, under pictures/.";
  return "No picture is kept of this cell.";
}

/** The figures of each victim, for those who read rather than look. */
function victimTable(cell) {
  const setting = report.settings[cell.setting];
  const rows = victimsOf(cell).map((victim) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, victimName(cell, victim)),
      make("td", {}, victimFigure(cell, victim)),
      make("td", {}, recognised(victim, setting.batch_size)),
      make("td", {}, victim.certified === null ? "not tested" : victim.certified ? "yes" : "no"),
    ),
  );
  const head = ["Victim", setting.metric.name, "Identified", "Certified"].map((text) => make("th", { scope: "col" }, text));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  return make("details", {}, make("summary", {}, "Each victim as a table"), make("div", { class: "scroll" }, table));
}

/** Beside each verdict at the top: the worst victims of its strongest attack. */
function fillCards() {
  for (const place of document.querySelectorAll(".pictures[data-cell]")) {
    const cell = cellById.get(place.dataset.cell);
    const worst = cell ? victimsOf(cell).filter((victim) => victim.truth && victim.found).slice(0, 2) : [];
    for (const victim of worst) {
      const name = victimName(cell, victim);
      place.append(
        make("figure", {}, picture(victim.truth, `truth of ${name}`), " ", picture(victim.found, `what ${cell.attack} got of ${name}`), make("figcaption", {}, `truth | guess, ${victimFigure(cell, victim)}`)),
      );
    }
  }
}
