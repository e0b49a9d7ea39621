"use strict";
// One cell: what the attacker got, how sure that is, and what to do next.

function term(name, ...content) {
  return make("div", {}, make("dt", {}, name), make("dd", {}, ...content));
}

/** Any metric, in three digits. */
function brief(value) {
  if (value.mean === null) return "unknown";
  const bounds = value.low === null ? "" : ` [${value.low.toPrecision(3)}, ${value.high.toPrecision(3)}]`;
  return `${value.mean.toPrecision(3)}${bounds}`;
}

function identifiedText(cell) {
  const found = cell.identified;
  if (!found) return "not tested";
  const among = report.settings[cell.setting].private_images;
  const crowd = among ? `among ${among} private images` : "among all private images (the results do not say how many)";
  return `${shareText(found)} victims recognised ${crowd}; at most ${percent(found.high)} (upper end of the 95 % interval)`;
}

function boundText(cell) {
  const setting = report.settings[cell.setting];
  const row = setting.defenses.find((one) => one.defense === cell.defense);
  const missing = row ? Object.entries(row.incomplete).map(([attack, reason]) => `${attack}: ${reason}`) : [];
  const without = missing.length ? ` (without ${missing.join(", ")})` : "";
  const worst = row ? `${figure(setting.metric, row.worst)}: on each victim the most that any attack here got${without}` : "unknown";
  if (setting.threat === "upper-bound") return `${worst}, granted labels and statistics`;
  const same = report.cells.find((one) => {
    const other = report.settings[one.setting];
    return one.defense === cell.defense && one.attack === cell.attack && other.threat === "upper-bound" && other.name.startsWith(setting.name);
  });
  return `${worst}. With labels and statistics (--gitbench-threat upper-bound): ${same ? figure(metricOf(same), same.value) : "not tested"}`;
}

function flagsText(cell) {
  if (!cell.flags.length) return ["none"];
  const known = new Map(report.flags.map((one) => [one.name, one]));
  const lines = cell.flags.map((name) => {
    const one = known.get(name);
    return make("li", {}, make("code", {}, name), one && one.why ? `: ${one.why}. ${one.what_to_do}.` : "");
  });
  return [make("ul", {}, ...lines)];
}

function verdict(cell) {
  return make(
    "dl",
    {},
    term("Verdict", badge(standingOf(cell)), ` ${cell.reason}`),
    cell.next && term("What next", make("b", {}, cell.next)),
    term("Leakage", `${figure(metricOf(cell), cell.value)}; threshold ${metricOf(cell).threshold} ${metricOf(cell).unit}`),
    term("Identified", identifiedText(cell)),
  );
}

function facts(cell) {
  const certified = cell.certified === null ? "not tested" : `${percent(cell.certified)} of victims: the attacker knows without the truth that it is right`;
  const others = Object.entries(cell.metrics).map(([name, value]) => `${name} ${brief(value)}`);
  return make(
    "dl",
    {},
    term("Past the threshold", cell.past ? `${shareText(cell.past)} victims` : "not tested"),
    term("Certified", certified),
    term("Upper bound", boundText(cell)),
    term("Flags", ...flagsText(cell)),
    others.length && term("All metrics", others.join("; ")),
  );
}

function method(cell) {
  const setting = report.settings[cell.setting];
  const options = Object.entries(cell.options).map(([name, value]) => `${name}=${value}`).join(", ");
  const code = Object.entries(cell.code).map(([name, value]) => `${name} ${value}`).join(", ");
  const seconds = cell.attack_seconds === null ? "not measured" : `${cell.fit_seconds.toFixed(1)} s to learn, ${cell.attack_seconds.toFixed(1)} s to attack`;
  return make(
    "details",
    {},
    make("summary", {}, "Settings, seeds, versions, files"),
    make(
      "dl",
      {},
      term("Setting", setting.name),
      term("Attack's options", options || "none"),
      term("Budget", `profile ${setting.profile}, ${setting.victims} victims, seeds ${setting.seeds.join(", ")}; ${seconds}`),
      term("Versions", setting.machines.join("; ")),
      term("Code", code || "unknown"),
      term("Result files", cell.seeds.map((seed) => `cases/${seed.case_id}.json`).join(", ") || "none"),
      term("Measured", `${cell.finished_at || "not"}${cell.by_others ? ", by others" : ""}`),
      term("Command", make("pre", { tabindex: "0" }, make("code", {}, setting.command))),
    ),
  );
}

function openCell(id) {
  const cell = cellById.get(id);
  const dialog = document.getElementById("detail");
  if (!cell) return;
  const setting = report.settings[cell.setting];
  const chart = make("div", { class: "chart", id: "chart-cell" });
  const title = make("h2", { id: "detail-title" }, make("code", {}, cell.attack), " on ", make("code", {}, cell.defense));
  dialog.replaceChildren(
    make("div", { class: "head" }, make("div", {}, title, make("p", { class: "note" }, setting.name)), make("button", { type: "button", autofocus: true, click: () => dialog.close() }, "Close")),
    verdict(cell),
    make("h3", {}, "What the attacker got, worst victims first"),
    gallery(cell),
    make("h3", {}, "Each victim"),
    chart,
    victimTable(cell),
    make("h3", {}, "How sure, and what else"),
    facts(cell),
    method(cell),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  history.replaceState(null, "", `#${id}`);
  drawCell(cell, chart);
}
