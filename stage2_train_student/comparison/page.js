"use strict";

// Tables: a click on a heading sorts by it; cells without a value stay last.
function valueOf(row, column) {
  const text = row.cells[column].dataset.value;
  if (text === undefined) return null;
  const number = Number(text);
  return Number.isNaN(number) ? text : number;
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), undefined, { numeric: true });
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const descending = heads[column].getAttribute("aria-sort") !== "descending";
  const keyed = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
  keyed.sort(([one], [other]) => {
    if (one === null || other === null) return (one === null) - (other === null);
    return descending ? compare(other, one) : compare(one, other);
  });
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sortBy(table, column));
  });
}

// Legend: experiments that are switched off leave every chart.
const hidden = new Set();
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const experiment = button.dataset.experiment;
    if (!hidden.delete(experiment)) hidden.add(experiment);
    button.setAttribute("aria-pressed", String(!hidden.has(experiment)));
    for (const series of document.querySelectorAll(`.series[data-experiment="${experiment}"]`)) {
      series.toggleAttribute("hidden", hidden.has(experiment));
    }
  });
}

// Charts: the values at the step under the pointer.
function nearest(places, x) {
  let best = 0;
  places.forEach((place, index) => {
    if (Math.abs(place - x) < Math.abs(places[best] - x)) best = index;
  });
  return best;
}

function valueLine(name, value) {
  const line = document.createElement("div");
  for (const text of [name, value]) {
    const part = document.createElement("span");
    part.textContent = text;
    line.append(part);
  }
  return line;
}

function showValues(figure, event) {
  const drawing = figure.querySelector("svg");
  const { series, unit } = figure.data;
  const box = drawing.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * drawing.viewBox.baseVal.width;
  const shown = series.filter((one) => !hidden.has(String(one.experiment)));
  if (!shown.length) return hideValues(figure);
  const lines = shown.map((one) => {
    const index = nearest(one.x, x);
    return { place: one.x[index], step: one.step[index], name: one.name, value: one.value[index] };
  });
  const closest = lines.reduce((best, line) => (Math.abs(line.place - x) < Math.abs(best.place - x) ? line : best));
  const output = figure.querySelector(".values");
  output.replaceChildren(
    valueLine("step", String(Math.round(closest.step))),
    ...lines.filter((line) => line.step === closest.step).map((line) => valueLine(line.name, `${line.value} ${unit}`)),
  );
  output.classList.toggle("left", x > drawing.viewBox.baseVal.width / 2);
  const cursor = figure.querySelector(".cursor");
  cursor.setAttribute("x1", closest.place);
  cursor.setAttribute("x2", closest.place);
  output.hidden = false;
  cursor.removeAttribute("hidden");
  return undefined;
}

function hideValues(figure) {
  figure.querySelector(".values").hidden = true;
  figure.querySelector(".cursor").setAttribute("hidden", "");
}

for (const figure of document.querySelectorAll(".chart")) {
  figure.data = JSON.parse(figure.querySelector("script").textContent);
  figure.addEventListener("pointermove", (event) => showValues(figure, event));
  figure.addEventListener("pointerdown", (event) => showValues(figure, event));
  figure.addEventListener("pointerleave", () => hideValues(figure));
}

document.documentElement.dataset.script = "ran";
