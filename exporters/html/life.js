// What moves by itself: eyes that follow the pointer, and eyelids that blink.

import { add, clamp, gazeVector, minus, scaled, times, transposed, unit } from "./math.js";
import { JOINTS } from "./head.js";

const ATTENTION = 4; // seconds that the eyes stay with a pointer that rests
const SWIFTNESS = 12; // per second: how fast they turn
const WIDEST = [0.55, 0.4]; // radians, sideways and up
const BLINK = 0.22; // seconds
const BETWEEN = [2.5, 6]; // seconds

export class Gaze {
  /** `near`: meters before the face where the pointer seems to be. */
  constructor(near) {
    this.near = near;
    this.weight = 0;
    this.eyes = [0, 0, 0, 0, 0, 0];
    this.until = -Infinity;
    this.point = null;
  }

  /** Looks for a while at a place in the picture, 0..1 across and down. */
  lookAt(x, y, now) {
    this.point = [x, y];
    this.until = now + ATTENTION;
  }

  /** Turns the eyes in `row` some of the way; `seconds` since the last time. */
  act(row, head, camera, now, seconds) {
    const start = head.expressions + 3 * 3;
    const own = Array.from(row.slice(start, start + 6));
    const [pull, goal] = now < this.until && head.turned ? [1, this.goal(head, camera)] : [0, own];
    const share = 1 - Math.exp(-SWIFTNESS * seconds);
    if (this.weight === 0) this.eyes = own;
    this.weight += (pull - this.weight) * share;
    if (pull === 0 && this.weight < 0.01) this.weight = 0;
    for (let i = 0; i < 6; i++) {
      this.eyes[i] += (goal[i] - this.eyes[i]) * share;
      row[start + i] = own[i] + (this.eyes[i] - own[i]) * this.weight;
    }
    return pull > 0 || this.weight > 0;
  }

  /** Both eyes' rotation vectors towards the point of the pointer's ray that is so near the face. */
  goal(head, camera) {
    const [x, y] = this.point;
    const ray = [(x * camera.width - camera.cx) / camera.fx, (y * camera.height - camera.cy) / camera.fy, 1];
    const back = transposed(camera.rotation);
    const center = times(back, scaled(camera.shift, -1));
    const middle = scaled(add(head.places[3], head.places[4]), 0.5);
    const depth = times(camera.rotation, minus(middle, center))[2];
    const point = add(center, times(back, scaled(ray, Math.max(depth - this.near, 0.1))));
    return [3, 4].flatMap((joint) => {
      const away = times(transposed(head.turned[head.parents[joint]]), minus(point, head.places[joint]));
      const [dx, dy, dz] = unit(away);
      const yaw = clamp(Math.atan2(dx, dz), -WIDEST[0], WIDEST[0]);
      const pitch = clamp(Math.atan2(dy, Math.hypot(dx, dz)), -WIDEST[1], WIDEST[1]);
      return gazeVector([Math.sin(yaw) * Math.cos(pitch), Math.sin(pitch), Math.cos(yaw) * Math.cos(pitch)]);
    });
  }
}

export class Blinking {
  /** `closing`: what is added to a row to close the eyes; undefined: nobody knows. */
  constructor(closing) {
    this.closing = closing;
    this.start = -Infinity;
  }

  /** Seconds from one blink to the next. */
  pause() {
    return BETWEEN[0] + Math.random() * (BETWEEN[1] - BETWEEN[0]);
  }

  begin(now) {
    this.start = now;
  }

  /** Closes the eyes in `row` as far as they are at this moment; whether a blink is going on. */
  act(row, now) {
    const phase = Math.max(now - this.start, 0) / BLINK; // a frame's time may be a little before the blink's
    if (phase >= 1) return false;
    const way = phase < 0.35 ? phase / 0.35 : (1 - phase) / 0.65;
    let [along, all] = [0, 0];
    this.closing.forEach((change, i) => ((along += change * row[i]), (all += change * change)));
    const open = 1 - clamp(along / all, 0, 1); // what the motion has left to close
    this.closing.forEach((change, i) => (row[i] += way * way * (3 - 2 * way) * open * change));
    return true;
  }
}

/** Where the parameters of each name stand in a row, after the expression. */
export function columns(expressions) {
  const start = (joint) => expressions + 3 * joint;
  return {
    rotation: [start(0), 3],
    neck: [start(1), 3],
    jaw: [start(2), 3],
    eyes: [start(3), 6],
    translation: [start(JOINTS), 3],
  };
}
