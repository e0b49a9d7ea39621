"use strict";

function fillAttacks() {
  const attacks = report.settings[Number(document.getElementById("setting").value)].attacks;
  const options = [["", "the strongest on each defense"], ...attacks.map((attack) => [attack, attack])];
  document.getElementById("attack").replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
}

function later(work, wait = 120) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, wait);
  };
}

function listen() {
  const filters = document.getElementById("filters");
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(() => { fillAttacks(); drawMatrix(); redrawCharts(); }));
  document.getElementById("search").addEventListener("input", later(drawMatrix));
  for (const id of ["verdict", "flag"]) document.getElementById(id).addEventListener("change", drawMatrix);
  document.getElementById("setting").addEventListener("change", () => { fillAttacks(); drawMatrix(); redrawCharts(); });
  document.getElementById("attack").addEventListener("change", drawVictims);
  document.addEventListener("click", (event) => {
    const open = event.target.closest("[data-open]");
    const flag = event.target.closest("[data-flag]");
    if (open) openCell(open.dataset.open);
    if (flag) {
      document.getElementById("flag").value = flag.dataset.flag;
      drawMatrix();
      document.getElementById("matrix").scrollIntoView();
      document.getElementById("flag").focus();
    }
  });
  document.getElementById("detail").addEventListener("close", () => history.replaceState(null, "", location.pathname));
  document.getElementById("save").addEventListener("click", () => {
    const text = document.getElementById("gitbench-data").textContent;
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "gitbench-report.json" });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
}

function watch() {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      drawChart(entry.target.id);
    }
  }, { rootMargin: "200px" });
  for (const id of Object.keys(CHARTS)) seen.observe(document.getElementById(id));
  // On paper nobody turns a page of the list, or scrolls to a chart.
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.paper = "yes";
    for (const id of Object.keys(CHARTS)) drawChart(id);
    drawList(null, 500);
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.paper;
    redrawCharts();
    drawList();
  });
}

fillAttacks();
drawMatrix();
listen();
watch();
document.documentElement.dataset.ready = "yes";
setTimeout(() => {
  fillCards();
  if (cellById.has(location.hash.slice(1))) openCell(location.hash.slice(1));
});
