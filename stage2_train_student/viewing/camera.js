"use strict";

// A camera that circles a point: x forward, y left, z up, metres. Matrices are column after column, as WebGL has them.
const FIELD_OF_VIEW = 0.9, NEAR = 0.3, FAR = 600;

class Camera {
  constructor() {
    this.reset();
  }

  // Behind and above the sensor, looking the way it drives.
  reset() {
    Object.assign(this, { yaw: 0, pitch: 0.42, distance: 34, target: [7, 0, -1] });
  }

  orbit(right, down) {
    this.yaw -= right * 0.006;
    this.pitch = Math.min(Math.max(this.pitch + down * 0.006, -1.5), 1.55);
  }

  zoom(steps) {
    this.distance = Math.min(Math.max(this.distance * Math.exp(steps), 1), 300);
  }

  // Moves the scene with the pointer, by so many pixels of a view of that height.
  pan(right, down, height) {
    const metres = (2 * this.distance * Math.tan(FIELD_OF_VIEW / 2)) / height;
    const axes = this.axes();
    this.target = this.target.map((value, axis) => value + metres * (down * axes.up[axis] - right * axes.right[axis]));
  }

  axes() {
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    return { forward: [cp * cy, cp * sy, -sp], right: [sy, -cy, 0], up: [sp * cy, sp * sy, cp] };
  }

  eye() {
    const { forward } = this.axes();
    return this.target.map((value, axis) => value - this.distance * forward[axis]);
  }

  // From metres to the view: a point's fourth number is its distance along the line of sight.
  matrix(aspect) {
    const { forward, right, up } = this.axes();
    const eye = this.eye(), scale = 1 / Math.tan(FIELD_OF_VIEW / 2);
    const along = (axis) => axis[0] * eye[0] + axis[1] * eye[1] + axis[2] * eye[2];
    const depth = (FAR + NEAR) / (FAR - NEAR), offset = (2 * FAR * NEAR) / (FAR - NEAR);
    const found = new Float32Array(16);
    for (let axis = 0; axis < 3; axis += 1) {
      found.set([(scale / aspect) * right[axis], scale * up[axis], depth * forward[axis], forward[axis]], 4 * axis);
    }
    found.set([(-scale / aspect) * along(right), -scale * along(up), -depth * along(forward) - offset, -along(forward)], 12);
    return found;
  }
}

// The visible point within some pixels of a place in the view that is nearest to the eye; -1 where there is none.
function nearestPoint(positions, shown, matrix, view, place, pixels) {
  const m = matrix;
  const wantedX = (2 * place.x) / view.width - 1, wantedY = 1 - (2 * place.y) / view.height;
  const acrossX = view.width / 2, acrossY = view.height / 2;
  let best = -1, bestCost = Infinity;
  for (let index = 0, at = 0; index < shown.length; index += 1, at += 3) {
    if (!shown[index]) continue;
    const x = positions[at], y = positions[at + 1], z = positions[at + 2];
    const w = m[3] * x + m[7] * y + m[11] * z + m[15];
    if (w < NEAR) continue;
    const right = ((m[0] * x + m[4] * y + m[8] * z + m[12]) / w - wantedX) * acrossX;
    const down = ((m[1] * x + m[5] * y + m[9] * z + m[13]) / w - wantedY) * acrossY;
    const apart = right * right + down * down;
    if (apart > pixels * pixels) continue;
    // Of points under the pointer the nearest one hides the others; a pixel beside it counts as 10 % of the distance.
    const cost = w * (1 + 0.1 * Math.sqrt(apart));
    if (cost < bestCost) [best, bestCost] = [index, cost];
  }
  return best;
}
