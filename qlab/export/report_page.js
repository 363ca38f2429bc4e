"use strict";

// ---- tables: a click on a heading sorts by it, a second one the other way round --------------------------------------

// What a cell is sorted by: data-key, a number or a text. Without it the cell is empty, and stands last both ways.
function order(column, numeric, direction) {
  return (one, other) => {
    const [a, b] = [one, other].map((row) => row.cells[column].dataset.key);
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return direction * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true, sensitivity: "base" }));
  };
}

for (const heading of document.querySelectorAll("table.sortable th[scope=col]")) {
  heading.querySelector("button").addEventListener("click", () => {
    const body = heading.closest("table").tBodies[0];
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = heading.classList.contains("number");
    body.append(...[...body.rows].sort(order(heading.cellIndex, numeric, up ? 1 : -1)));
  });
}

// ---- charts ----------------------------------------------------------------------------------------------------------

const places = [...document.querySelectorAll(".chart")];

function tell(words) {
  for (const place of places) {
    const line = document.createElement("p");
    line.textContent = words;
    place.replaceChildren(line);
  }
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function start() {
  if (!("DecompressionStream" in window)) {
    tell("This browser cannot unpack the charts: open the report in Chrome or Edge from 80, Firefox from 113, " +
      "or Safari from 16.4. The tables are complete without them.");
    return;
  }
  // Not from an address: as text of a script whose hash stands in the page's policy, so that no other may run.
  const library = document.createElement("script");
  library.textContent = await unpack("plotly");
  document.head.append(library);
  if (!window.Plotly) throw new Error("the library that draws them did not start");
  const figures = JSON.parse(document.getElementById("chart-data").textContent);
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  const draw = (dark) => Promise.all(places.map(async (place) => {
    const { data, layout } = figures[place.id][dark ? "dark" : "light"];
    if (!place.classList.contains("js-plotly-plot")) place.replaceChildren();
    await Plotly.react(place, data, layout, { responsive: true, displaylogo: false });
  }));
  await draw(night.matches);
  night.addEventListener("change", () => draw(night.matches));
  // Paper is white.
  window.addEventListener("beforeprint", () => draw(false));
  window.addEventListener("afterprint", () => draw(night.matches));
}

if (places.length) start().catch((error) => {
  tell(`The charts could not be drawn: ${error.message}. The tables are complete without them.`);
  throw error;
});
