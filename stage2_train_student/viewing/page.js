"use strict";

const UNLABELLED = [96, 106, 120], RIGHT = [62, 74, 92], WRONG = [255, 77, 77], NO_TRUTH = [38, 45, 56];
const SIZES = { quiet: 110, usual: 160, loud: 225 };
const CONFIDENCE = ["#ff3f5f", "#ff8a3c", "#f2c14e", "#6f8fa8", "#33475c"];
const VALUES = ["#1d2a6b", "#2b6ea8", "#2fae9b", "#9bd45a", "#fff27a"];
const RING = [44, 54, 68, 255];

const data = JSON.parse(document.getElementById("data").textContent);
const colours = data.classes.map(({ colour }, label) => (label ? visible(colour) : UNLABELLED));
const part = (id) => document.getElementById(id);
const canvas = part("view"), camera = new Camera();
const state = { scan: null, mode: null, before: null, hidden: new Set(), pointed: -1, waiting: false, moving: false, share: 1 };
let cloud = null;

// A dark colour, brighter: it has to be seen on black.
function visible(colour) {
  const brighter = Math.max(1, 165 / Math.max(...colour, 1));
  return colour.map((value) => Math.round(value * brighter));
}

// What a scan holds, from base64 to typed arrays.
function opened(packed) {
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const steps = new Uint16Array(bytes(packed.points).buffer);
  const count = steps.length / 4;
  const positions = new Float32Array(3 * count), reflectance = new Float32Array(count);
  const metres = (row, column) => packed.low[column] + packed.step[column] * steps[4 * row + column];
  for (let row = 0; row < count; row += 1) {
    for (let axis = 0; axis < 3; axis += 1) positions[3 * row + axis] = metres(row, axis);
    reflectance[row] = metres(row, 3);
  }
  const opinions = packed.opinions.map((one) => ({ ...one, classes: bytes(one.classes), confidence: bytes(one.confidence) }));
  const truth = packed.truth === null ? null : bytes(packed.truth);
  return { ...packed, count, positions, reflectance, truth, opinions, shown: new Uint8Array(count), ground: groundOf(positions) };
}

// Height of the ground near the sensor, metres: few echoes lie below it.
function groundOf(positions) {
  const heights = [];
  for (let at = 0; at < positions.length; at += 3) {
    if (Math.hypot(positions[at], positions[at + 1]) < 15) heights.push(positions[at + 2]);
  }
  heights.sort((one, other) => one - other);
  return heights.length ? heights[Math.floor(heights.length * 0.1)] : 0;
}

// Ways of colouring a scan's points, in rows. Each gives a colour and a size for a point, and says what its legend is.
function modesOf(scan) {
  const { truth, opinions } = scan;
  const named = (name, labels, iou = null) => ({ name, labels, iou, of: (row) => [colours[labels[row]], SIZES.usual] });
  const differs = (name, labels, others, words) => ({
    name,
    words,
    of: (row) => {
      if (others[row] === 0) return [NO_TRUTH, SIZES.quiet];
      return labels[row] === others[row] ? [RIGHT, SIZES.quiet] : [WRONG, SIZES.loud];
    },
  });
  const ramped = (name, ramp, low, high, unit, value) => {
    const steps = Array.from({ length: 256 }, (_, step) => between(ramp, step / 255));
    const at = (row) => Math.round(255 * Math.min(Math.max((value(row) - low) / (high - low), 0), 1));
    return { name, ramp, ends: [low, high].map((end) => `${+end.toPrecision(3)}${unit}`), of: (row) => [steps[at(row)], SIZES.usual] };
  };
  const rows = { Classes: [], Errors: [], Confidence: [], Measured: [] };
  if (truth) rows.Classes.push(named("truth", truth));
  for (const { who, classes, confidence, iou } of opinions) {
    rows.Classes.push(named(who, classes, iou));
    if (truth) rows.Errors.push(differs(who, classes, truth, ["right", "wrong", "no label"]));
    const percent = (row) => confidence[row] / 2.55;
    rows.Confidence.push(ramped(who, CONFIDENCE, 0, 100, " %", percent));
  }
  if (opinions.length === 2) {
    rows.Errors.push(differs("student ≠ teacher", opinions[0].classes, opinions[1].classes, ["the same", "different", ""]));
  }
  rows.Measured.push(ramped("reflectance", VALUES, scan.low[3], scan.bright, "", (row) => scan.reflectance[row]));
  const height = (row) => scan.positions[3 * row + 2] - scan.ground;
  rows.Measured.push(ramped("height", VALUES, 0, 5, " m", height));
  for (const [row, modes] of Object.entries(rows)) modes.forEach((mode) => Object.assign(mode, { key: `${row} ${mode.name}` }));
  return rows;
}

function between(ramp, share) {
  const place = share * (ramp.length - 1), left = Math.min(Math.floor(place), ramp.length - 2);
  const channel = (colour, first) => parseInt(colour.slice(first, first + 2), 16);
  return [1, 3, 5].map((first) => {
    const [low, high] = [channel(ramp[left], first), channel(ramp[left + 1], first)];
    return Math.round(low + (high - low) * (place - left));
  });
}

// Labels by which classes are hidden: those that are shown, or else the student's.
const labelsShown = () => state.mode.labels ?? state.scan.opinions[0].classes;
const rightAt = (row) => state.scan.truth !== null && state.scan.truth[row] === (judged().classes[row]);
const judged = () => state.scan.opinions.find(({ who }) => who === state.mode.name) ?? state.scan.opinions[0];

function recolour() {
  const { scan, mode, hidden } = state;
  const labels = labelsShown(), found = new Uint8Array(4 * scan.count);
  const onlyWrong = part("wrong").checked, onlyLabelled = part("unlabelled").checked;
  for (let row = 0; row < scan.count; row += 1) {
    const hide = hidden.has(labels[row]) || (onlyWrong && rightAt(row)) || (onlyLabelled && scan.truth && scan.truth[row] === 0);
    scan.shown[row] = hide ? 0 : 1;
    if (hide) continue;
    const [colour, size] = mode.of(row);
    found.set(colour, 4 * row);
    found[4 * row + 3] = size;
  }
  cloud.setColours(found);
  later();
}

// Rings every 10 m on the ground, and the sensor's axes: x red, y green, z blue.
function guides(ground) {
  const ends = [], tints = [], sides = 96;
  const line = (from, to, tint) => {
    ends.push(...from, ...to);
    tints.push(...tint, ...tint);
  };
  for (let radius = 10; radius <= 50; radius += 10) {
    const at = (side) => [radius * Math.cos((2 * Math.PI * side) / sides), radius * Math.sin((2 * Math.PI * side) / sides), ground];
    for (let side = 0; side < sides; side += 1) line(at(side), at(side + 1), RING);
  }
  line([0, 0, 0], [2, 0, 0], [255, 92, 92, 255]);
  line([0, 0, 0], [0, 2, 0], [92, 220, 110, 255]);
  line([0, 0, 0], [0, 0, 2], [96, 150, 255, 255]);
  return [new Float32Array(ends), new Uint8Array(tints)];
}

function showScan(number) {
  const scan = opened(data.scans[number]);
  const key = state.mode?.key;
  state.scan = scan;
  state.rows = modesOf(scan);
  cloud.setPoints(scan.positions, ...guides(scan.ground));
  part("scan").value = String(number);
  part("before").disabled = number === 0;
  part("next").disabled = number === data.scans.length - 1;
  const known = scan.opinions.filter(({ right }) => right !== null).map(({ who, right }) => `${who} ${percent(right)} right`);
  part("facts").textContent = [`${scan.count.toLocaleString("en")} points`, ...known].join(" · ");
  for (const id of ["wrong", "unlabelled"]) part(id).parentElement.hidden = scan.truth === null;
  const all = Object.values(state.rows).flat();
  point(-1);
  showMode(all.find((mode) => mode.key === key) ?? state.rows.Classes.find(({ name }) => name === "student"));
}

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);

function made(kind, text, more = {}) {
  return Object.assign(document.createElement(kind), { textContent: text, ...more });
}

// Shows a way of colouring; a second press on its button goes back to the one before.
function showMode(mode) {
  state.before = state.mode && state.mode.key !== mode.key ? state.mode.key : state.before;
  state.mode = mode;
  part("modes").replaceChildren(...Object.entries(state.rows).filter(([, modes]) => modes.length).map(([row, modes]) => {
    const buttons = modes.map((one) => {
      const button = made("button", one.name, { type: "button" });
      button.dataset.key = one.key;
      button.setAttribute("aria-pressed", String(one === mode));
      button.addEventListener("click", () => {
        const before = Object.values(state.rows).flat().find(({ key }) => key === state.before);
        showMode(state.mode === one && before ? before : one);
      });
      return button;
    });
    const line = made("div", "");
    line.append(made("span", row), made("nav", ""));
    line.lastChild.append(...buttons);
    return line;
  }));
  legend();
  recolour();
}

function legend() {
  const { scan, mode, hidden } = state;
  const counts = new Array(colours.length).fill(0);
  for (const label of labelsShown()) counts[label] += 1;
  const scored = scan.opinions.filter(({ iou }) => iou !== null);
  const row = (kind, cells, name = "") => {
    const line = made("tr", "", { className: name });
    line.append(made("th", ""), ...cells.map((text) => made(kind, text)));
    return line;
  };
  part("heads").replaceChildren(row("th", [...scored.map(({ who }) => (scored.length > 1 ? `${who} IoU` : "IoU")), "points"]));
  const lines = counts.map((count, label) => {
    const line = row("td", [...scored.map(({ iou }) => percent(iou[label])), count.toLocaleString("en")], hidden.has(label) ? "off" : "");
    const chip = made("span", "", { className: "chip" });
    chip.style.background = `rgb(${colours[label]})`;
    line.firstChild.append(chip, data.classes[label].name);
    line.dataset.label = label;
    line.addEventListener("click", () => toggle(label));
    line.addEventListener("dblclick", () => alone(label));
    return line;
  });
  const occurs = (label) => counts[label] > 0 || scored.some(({ iou }) => iou[label] !== null) || hidden.has(label);
  const order = [...lines.keys()].filter(occurs).sort((one, other) => (one === 0) - (other === 0) || counts[other] - counts[one]);
  const mean = row("td", [...scored.map(({ miou }) => percent(miou)), scan.count.toLocaleString("en")], "mean");
  mean.firstChild.textContent = scored.length ? "mean of this scan" : "all";
  part("classes").replaceChildren(mean, ...order.map((label) => lines[label]));
  part("ramp").hidden = !mode.ramp && !mode.words;
  if (mode.ramp) {
    const bar = made("i", ""), ends = made("div", "");
    bar.style.background = `linear-gradient(90deg,${mode.ramp})`;
    ends.append(...mode.ends.map((end) => made("b", end)));
    part("ramp").replaceChildren(bar, ends);
  } else if (mode.words) {
    part("ramp").replaceChildren(...mode.words.filter(Boolean).map((word, kind) => {
      const line = made("p", ""), chip = made("span", "", { className: "chip" });
      chip.style.background = `rgb(${[RIGHT, WRONG, NO_TRUTH][kind]})`;
      line.append(chip, word);
      return line;
    }));
  }
}

function toggle(label) {
  if (!state.hidden.delete(label)) state.hidden.add(label);
  legend();
  recolour();
}

function alone(label) {
  const others = colours.map((_, other) => other).filter((other) => other !== label);
  state.hidden = new Set(others.every((other) => state.hidden.has(other)) ? [] : others);
  legend();
  recolour();
}

// Names the point under the pointer.
function point(row, at = null) {
  state.pointed = row;
  part("tip").hidden = part("mark").hidden = row < 0;
  if (row < 0) return;
  const { scan } = state, lines = [];
  const line = (name, text, look = "") => {
    const found = made("div", "", { className: look });
    found.append(made("span", name), made("span", text));
    lines.push(found);
  };
  if (scan.truth) line("truth", data.classes[scan.truth[row]].name);
  for (const { who, classes, confidence } of scan.opinions) {
    const wrong = scan.truth && scan.truth[row] !== 0 && scan.truth[row] !== classes[row];
    line(who, `${data.classes[classes[row]].name} · ${Math.round(confidence[row] / 2.55)} %`, wrong ? "wrong" : "");
  }
  const [x, y, z] = scan.positions.subarray(3 * row, 3 * row + 3);
  line(`x ${x.toFixed(2)}  y ${y.toFixed(2)}  z ${z.toFixed(2)} m`, "", "place");
  line(`${Math.hypot(x, y, z).toFixed(1)} m away`, `reflectance ${+scan.reflectance[row].toPrecision(3)}`, "place");
  part("tip").replaceChildren(...lines);
  const place = placeOf(row), box = part("tip").getBoundingClientRect(), from = at ?? place;
  part("mark").style.transform = `translate(${place.x}px,${place.y}px)`;
  const left = from.x + 18 + box.width > innerWidth ? from.x - 18 - box.width : from.x + 18;
  const top = Math.min(from.y + 14, innerHeight - box.height - 8);
  part("tip").style.transform = `translate(${Math.max(left, 4)}px,${Math.max(top, 4)}px)`;
}

// Where a point is seen, in pixels of the page.
function placeOf(row) {
  const m = matrixNow(), [x, y, z] = state.scan.positions.subarray(3 * row, 3 * row + 3);
  const of = (axis) => m[axis] * x + m[4 + axis] * y + m[8 + axis] * z + m[12 + axis];
  return { x: ((of(0) / of(3) + 1) / 2) * innerWidth, y: ((1 - of(1) / of(3)) / 2) * innerHeight };
}

const matrixNow = () => camera.matrix(innerWidth / innerHeight);

function pointAt(place) {
  const { positions, shown } = state.scan;
  return nearestPoint(positions, shown, matrixNow(), { width: innerWidth, height: innerHeight }, place, 9);
}

function frame() {
  state.waiting = false;
  const coarse = state.moving && state.share < 1;
  const density = Math.min(devicePixelRatio || 1, 2) * (coarse ? 0.5 : 1);
  const [width, height] = [innerWidth, innerHeight].map((length) => Math.round(length * density));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const drawn = Math.ceil(state.scan.count * (coarse ? state.share : 1));
  // Fewer points are larger ones: together they cover as much of the view.
  const few = Math.min(Math.max((120000 / drawn) ** 0.25, 0.7), 2);
  cloud.draw(matrixNow(), Number(part("size").value) * density * 1.6 * few, drawn);
}

// Draws when the browser is ready for a picture, once however much has changed.
function later() {
  if (!state.waiting) requestAnimationFrame(frame);
  state.waiting = true;
}

// As `later`, while something moves: a slow machine draws a part of the points, and all of them once it rests.
function moved() {
  state.moving = true;
  clearTimeout(state.rest);
  state.rest = setTimeout(() => {
    state.moving = false;
    later();
  }, 250);
  later();
}

// Measures a picture, to find the share of points that can be drawn within 30 ms.
function measure() {
  const started = performance.now();
  frame();
  // Reading a pixel waits for the picture.
  cloud.gl.readPixels(0, 0, 1, 1, cloud.gl.RGBA, cloud.gl.UNSIGNED_BYTE, new Uint8Array(4));
  state.share = Math.max(Math.min(1, 30 / (performance.now() - started)), 0.1);
}
