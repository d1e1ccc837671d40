// The rig: from expression and pose to vertices, and from those to the frame of every triangle.
//
//   joints   = joints of the identity + joint modes * expression
//   posed    = vertices of the identity + modes * (expression, R_1 - I, ..., R_4 - I)
//   vertices = linear blend skinning of `posed` along the joint chain + translation
//
// A row is: the expression, then rotation, neck, jaw, left eye, right eye (3 each, axis-angle, radians), then the
// translation (3, meters). The formulas are those of ops/flame.py and ops/rig.py.

import { numbers } from "./data.js";
import { add, clamp, minus, product, rotationMatrix, times } from "./math.js";

export const JOINTS = 5;

export class Head {
  constructor({ header, arrays }) {
    this.rules = header.rules;
    this.parents = header.parents;
    this.expressions = arrays.modes.shape[0];
    this.base = numbers(arrays.base);
    this.faces = arrays.faces.values;
    this.joints = numbers(arrays.joints);
    this.jointModes = numbers(arrays.joint_modes);
    this.weights = normalized(numbers(arrays.weights));
    this.modes = [
      ...split(arrays.modes, header.modes.map((mode) => mode.step)),
      ...split(arrays.correctives, header.correctives.map((mode) => mode.step)),
    ];
    this.features = header.correctives.map((mode) => mode.feature); // which of the 36 entries of R_j - I
    this.posed = new Float32Array(this.base.length);
    this.vertices = new Float32Array(this.base.length);
    this.frames = new Float32Array((this.faces.length / 3) * 12);
    this.rule = header.code;
    this.code = new Float32Array(header.code ? header.code.start.length : 0);
  }

  /** Moves the mesh; afterwards `vertices`, `frames` and `code`, by which colors change, are those of the row. */
  pose(row) {
    const turns = [];
    for (let joint = 0; joint < JOINTS; joint++) {
      const start = this.expressions + 3 * joint;
      turns.push(rotationMatrix([row[start], row[start + 1], row[start + 2]]));
    }
    this.displace(row, turns);
    this.skin(row, turns);
    this.place();
    for (let k = 0; k < this.code.length; k++) {
      const { directions, start, low, high } = this.rule;
      let value = start[k];
      for (let i = 0; i < row.length; i++) value += row[i] * directions[k][i];
      this.code[k] = clamp(value, low[k], high[k]);
    }
  }

  displace(row, turns) {
    const { posed, modes, features, expressions } = this;
    posed.set(this.base);
    for (let m = 0; m < modes.length; m++) {
      const { values, start, step } = modes[m];
      let amount = row[m];
      if (m >= expressions) {
        const feature = features[m - expressions];
        const [joint, entry] = [1 + Math.floor(feature / 9), feature % 9];
        amount = turns[joint][entry] - (entry % 4 === 0 ? 1 : 0);
      }
      if (Math.abs(amount) < 1e-7) continue;
      amount *= step;
      for (let i = 0, at = start; i < values.length; i++, at++) posed[at] += amount * values[i];
    }
  }

  /** Rotation (9) and shift (3) of every joint, 12 numbers each by rows. */
  transforms(row, turns) {
    const rest = [];
    for (let joint = 0; joint < JOINTS; joint++) {
      const position = [0, 0, 0];
      for (let c = 0; c < 3; c++) {
        position[c] = this.joints[3 * joint + c];
        for (let e = 0; e < this.expressions; e++) {
          position[c] += row[e] * this.jointModes[3 * JOINTS * e + 3 * joint + c];
        }
      }
      rest.push(position);
    }
    const world = [turns[0]];
    const positions = [rest[0]];
    for (let joint = 1; joint < JOINTS; joint++) {
      const parent = this.parents[joint];
      world.push(product(world[parent], turns[joint]));
      positions.push(add(positions[parent], times(world[parent], minus(rest[joint], rest[parent]))));
    }
    this.turned = world;
    const at = this.expressions + 3 * JOINTS;
    const translation = [row[at], row[at + 1], row[at + 2]];
    this.places = positions.map((position) => add(position, translation));
    return world.map((turn, joint) => {
      const shift = add(minus(positions[joint], times(turn, rest[joint])), translation);
      return [...turn.slice(0, 3), shift[0], ...turn.slice(3, 6), shift[1], ...turn.slice(6, 9), shift[2]];
    });
  }

  skin(row, turns) {
    const { posed, vertices, weights } = this;
    const table = new Float32Array(this.transforms(row, turns).flat());
    const blend = new Float32Array(12);
    for (let v = 0; v < vertices.length / 3; v++) {
      blend.fill(0);
      for (let joint = 0; joint < JOINTS; joint++) {
        const weight = weights[JOINTS * v + joint];
        if (weight === 0) continue;
        for (let i = 0; i < 12; i++) blend[i] += weight * table[12 * joint + i];
      }
      const [x, y, z] = [posed[3 * v], posed[3 * v + 1], posed[3 * v + 2]];
      for (let c = 0; c < 3; c++) {
        vertices[3 * v + c] = blend[4 * c] * x + blend[4 * c + 1] * y + blend[4 * c + 2] * z + blend[4 * c + 3];
      }
    }
  }

  /** Frame of each triangle: three rows of (k R | origin). */
  place() {
    const { vertices: p, faces, frames } = this;
    const { minEdge, minSine } = this.rules;
    for (let f = 0; f < faces.length / 3; f++) {
      const [a, b, c] = [3 * faces[3 * f], 3 * faces[3 * f + 1], 3 * faces[3 * f + 2]];
      const [ex, ey, ez] = [p[b] - p[a], p[b + 1] - p[a + 1], p[b + 2] - p[a + 2]];
      const [sx, sy, sz] = [p[c] - p[a], p[c + 1] - p[a + 1], p[c + 2] - p[a + 2]];
      const [nx, ny, nz] = [ey * sz - ez * sy, ez * sx - ex * sz, ex * sy - ey * sx];
      const first = Math.sqrt(ex * ex + ey * ey + ez * ez);
      const second = Math.sqrt(sx * sx + sy * sy + sz * sz);
      const area = Math.sqrt(nx * nx + ny * ny + nz * nz);
      const at = 12 * f;
      frames[at + 3] = (p[a] + p[b] + p[c]) / 3;
      frames[at + 7] = (p[a + 1] + p[b + 1] + p[c + 1]) / 3;
      frames[at + 11] = (p[a + 2] + p[b + 2] + p[c + 2]) / 3;
      if (first < minEdge || second < minEdge || area < minSine * first * second) {
        for (let i = 0; i < 3; i++) {
          for (let j = 0; j < 3; j++) frames[at + 4 * i + j] = i === j ? first / 2 : 0;
        }
        continue;
      }
      const k = (first + area / first) / 2; // area / first: the triangle's height over its first edge
      const [u, w] = [k / first, k / area];
      const [ax, ay, az, bx, by, bz] = [ex * u, ey * u, ez * u, nx * w, ny * w, nz * w];
      frames[at] = ax;
      frames[at + 1] = bx;
      frames[at + 2] = (ay * bz - az * by) / k;
      frames[at + 4] = ay;
      frames[at + 5] = by;
      frames[at + 6] = (az * bx - ax * bz) / k;
      frames[at + 8] = az;
      frames[at + 9] = bz;
      frames[at + 10] = (ax * by - ay * bx) / k;
    }
  }
}

/** A static scene: one frame, that of the world, in which all Gaussians lie. */
export class Stage {
  constructor() {
    this.expressions = 0;
    this.frames = new Float32Array([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]);
  }

  pose() {}
}

/** Rounded weights add up to almost one; the rest would move the vertex towards the origin. */
function normalized(weights) {
  for (let at = 0; at < weights.length; at += JOINTS) {
    let sum = 0;
    for (let j = 0; j < JOINTS; j++) sum += weights[at + j];
    for (let j = 0; j < JOINTS; j++) weights[at + j] /= sum;
  }
  return weights;
}

/** One entry per mode, without the zeros at its ends: many modes move a part of the face only. */
function split({ values, shape }, steps) {
  const length = shape[1];
  return steps.map((step, m) => {
    const mode = values.subarray(m * length, (m + 1) * length);
    const moves = (value) => value !== 0;
    const start = Math.max(mode.findIndex(moves), 0);
    return { values: mode.subarray(start, mode.findLastIndex(moves) + 1), start, step };
  });
}
