"use strict";

// What a reader does: pointers, wheel, keys and buttons.
const held = new Map();

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  held.set(event.pointerId, { x: event.clientX, y: event.clientY });
  canvas.classList.add("held");
  point(-1);
});

for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    held.delete(event.pointerId);
    canvas.classList.toggle("held", held.size > 0);
  });
}

const middle = () => {
  const places = [...held.values()];
  const [x, y] = ["x", "y"].map((axis) => places.reduce((sum, place) => sum + place[axis], 0) / places.length);
  const apart = places.length > 1 ? Math.hypot(places[0].x - places[1].x, places[0].y - places[1].y) : 0;
  return { x, y, apart };
};

canvas.addEventListener("pointermove", (event) => {
  const at = { x: event.clientX, y: event.clientY };
  if (!held.has(event.pointerId)) {
    point(pointAt(at), at);
    return;
  }
  const from = middle();
  held.set(event.pointerId, at);
  const to = middle();
  const [right, down] = [to.x - from.x, to.y - from.y];
  if (held.size > 1) {
    camera.pan(right, down, innerHeight);
    if (from.apart && to.apart) camera.zoom(Math.log(from.apart / to.apart));
  } else if (event.buttons & 6 || event.shiftKey) camera.pan(right, down, innerHeight);
  else camera.orbit(right, down);
  moved();
});

canvas.addEventListener("pointerleave", () => point(-1));
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  camera.zoom(event.deltaY * (event.deltaMode ? 0.05 : 0.0015));
  point(-1);
  moved();
}, { passive: false });

canvas.addEventListener("dblclick", (event) => {
  const row = pointAt({ x: event.clientX, y: event.clientY });
  if (row < 0) return;
  camera.target = [...state.scan.positions.subarray(3 * row, 3 * row + 3)];
  camera.distance = Math.min(camera.distance, 25);
  later();
});

function step(by) {
  const number = Number(part("scan").value) + by;
  if (number >= 0 && number < data.scans.length) showScan(number);
}

function goBack() {
  camera.reset();
  point(-1);
  later();
}

const KEYS = {
  ArrowLeft: () => camera.orbit(-15, 0),
  ArrowRight: () => camera.orbit(15, 0),
  ArrowUp: () => camera.orbit(0, 15),
  ArrowDown: () => camera.orbit(0, -15),
  "+": () => camera.zoom(-0.15),
  "-": () => camera.zoom(0.15),
  r: goBack,
  PageUp: () => step(-1),
  PageDown: () => step(1),
};
canvas.addEventListener("keydown", (event) => {
  if (!KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
  point(-1);
  moved();
});

part("scan").addEventListener("change", () => showScan(Number(part("scan").value)));
part("before").addEventListener("click", () => step(-1));
part("next").addEventListener("click", () => step(1));
part("wrong").addEventListener("change", recolour);
part("unlabelled").addEventListener("change", recolour);
part("size").addEventListener("input", later);
part("reset").addEventListener("click", goBack);
addEventListener("resize", () => {
  point(-1);
  later();
});
canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
canvas.addEventListener("webglcontextrestored", begin);

// On a phone the scan is what is seen first.
part("legend").open = innerWidth > 820;

function begin() {
  try {
    cloud = new Cloud(canvas);
    showScan(Number(part("scan").value) || 0);
    frame();
    measure();
  } catch (error) {
    Object.assign(part("failure"), { hidden: false, textContent: error.message });
  }
}
begin();
