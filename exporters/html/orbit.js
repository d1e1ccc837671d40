// The camera that circles around the avatar, and the hands that move it.

import { add, clamp, cross, dot, minus, scaled, unit } from "./math.js";

const STEEPEST = 1.4; // radians
const ZOOM = [0.3, 12];

export class Orbit {
  /** `view`: target, back and up, distance, height and aspect of what is seen whole (exporters/html/view.py). */
  constructor(view) {
    this.view = view;
    this.right = cross(view.up, view.back);
    this.reset();
  }

  reset() {
    this.yaw = 0;
    this.pitch = 0;
    this.zoom = 1;
    this.target = this.view.target;
  }

  /** Right, up and back of the camera, in the world. */
  axes() {
    const { up, back } = this.view;
    const level = add(scaled(back, Math.cos(this.yaw)), scaled(this.right, Math.sin(this.yaw)));
    const away = add(scaled(level, Math.cos(this.pitch)), scaled(up, Math.sin(this.pitch)));
    const right = unit(cross(up, level));
    return [right, cross(away, right), away];
  }

  /** Pixels per meter at the target. */
  density(width, height) {
    return this.zoom * Math.min(height, width / this.view.aspect) / this.view.height;
  }

  /** What `Renderer.draw` takes. */
  camera(width, height) {
    const [right, up, back] = this.axes();
    const center = add(this.target, scaled(back, this.view.distance));
    const [down, forward] = [scaled(up, -1), scaled(back, -1)];
    const focal = this.density(width, height) * this.view.distance;
    return {
      rotation: [...right, ...down, ...forward],
      shift: [-dot(right, center), -dot(down, center), -dot(forward, center)],
      fx: focal, fy: focal, cx: width / 2, cy: height / 2, width, height,
    };
  }

  /** Turns by a drag of so many pixels, on a canvas so high. */
  turn(dx, dy, height) {
    this.yaw -= (3.5 * dx) / height;
    this.pitch = clamp(this.pitch + (3.5 * dy) / height, -STEEPEST, STEEPEST);
  }

  pan(dx, dy, width, height) {
    const [right, up] = this.axes();
    const meters = 1 / this.density(width, height);
    this.target = add(this.target, add(scaled(right, -dx * meters), scaled(up, dy * meters)));
    const away = minus(this.target, this.view.target);
    const far = Math.hypot(...away) / this.view.height; // not out of sight
    if (far > 1) this.target = add(this.view.target, scaled(away, 1 / far));
  }

  magnify(factor) {
    this.zoom = clamp(this.zoom * factor, ...ZOOM);
  }
}

/** Mouse, touch and keys on `element` move `orbit`; `changed` is called after each. */
export function listen(element, orbit, changed) {
  const pointers = new Map();
  const size = () => [element.clientWidth || 1, element.clientHeight || 1];
  const acts = {
    pointerdown(event) {
      element.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    },
    pointermove(event) {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const [dx, dy] = [event.clientX - before[0], event.clientY - before[1]];
      if (pointers.size === 2) {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const apart = (point) => Math.max(Math.hypot(point[0] - other[0], point[1] - other[1]), 1);
        orbit.magnify(apart([event.clientX, event.clientY]) / apart(before));
        orbit.pan(dx / 2, dy / 2, ...size());
      } else if (event.buttons & 2 || event.shiftKey) orbit.pan(dx, dy, ...size());
      else orbit.turn(dx, dy, size()[1]);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      changed();
    },
    pointerup: (event) => pointers.delete(event.pointerId),
    pointercancel: (event) => pointers.delete(event.pointerId),
    contextmenu: (event) => event.preventDefault(),
    wheel(event) {
      event.preventDefault();
      orbit.magnify(Math.exp(-event.deltaY * (event.deltaMode ? 0.03 : 0.0012)));
      changed();
    },
    dblclick() {
      orbit.reset();
      changed();
    },
    keydown(event) {
      const turns = { ArrowLeft: [30, 0], ArrowRight: [-30, 0], ArrowUp: [0, 30], ArrowDown: [0, -30] };
      if (turns[event.key]) orbit.turn(...turns[event.key], size()[1]);
      else if (event.key === "+" || event.key === "=") orbit.magnify(1.1);
      else if (event.key === "-") orbit.magnify(1 / 1.1);
      else if (event.key === "0") orbit.reset();
      else return;
      event.preventDefault();
      changed();
    },
  };
  for (const [name, act] of Object.entries(acts)) element.addEventListener(name, act, { passive: false });
}
