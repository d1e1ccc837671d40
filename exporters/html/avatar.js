// The avatar: what it does, and when it is drawn. `window.avatar` is one of these; so is `element.avatar`.

import { numbers, unpack } from "./data.js";
import { Head, Stage } from "./head.js";
import { Blinking, Gaze, columns } from "./life.js";
import { clamp, times, transposed } from "./math.js";
import { Orbit, listen } from "./orbit.js";
import { Renderer } from "./renderer.js";

const SLOW = 1 / 18; // seconds per frame from which on fewer pixels are drawn
const QUICK = 1 / 45;
const LINGER = 0.3; // seconds that a hand still counts as moving
const COARSEST = 0.4; // of the pixels' side

/**
 * Events: "ready"; "play" and "pause"; "change" (somebody set or released a parameter); "frame" (a picture was drawn;
 * detail: {time, seconds}); "error" (detail: the Error).
 */
export class Avatar extends EventTarget {
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.ready = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
    this.ready.catch(() => {}); // it is told by the event as well
    this.held = new Map(); // column of the row -> value that somebody set
    this.time = 0; // rows of the motion
    this.playing = false;
    this.loop = true;
    this.following = true;
    this.blinking = false;
    this.scale = 1; // of the device's pixels
    this.given = null; // camera set from outside
    this.last = 0; // seconds: the frame before
    this.touched = -Infinity; // seconds: when somebody last moved something
    this.asked = 0;
  }

  /** Takes the data (Uint8Array), and draws the first picture. */
  async open(bytes) {
    try {
      const data = await unpack(bytes);
      const { header, arrays } = data;
      this.header = header;
      this.fps = header.fps;
      this.head = header.modes ? new Head(data) : new Stage();
      this.renderer = new Renderer(this.canvas, data, () => this.fail(new Error("The graphics card was lost; reload.")));
      this.motion = header.modes ? motionRows(header, arrays) : [new Float32Array(0)];
      this.row = new Float32Array(this.motion[0].length);
      this.columns = columns(this.head.expressions);
      this.orbit = new Orbit(header.view);
      this.gaze = new Gaze(0.6 * header.view.height);
      this.blinks = new Blinking(header.blink);
      listen(this.canvas, this.orbit, () => this.touch());
      this.canvas.addEventListener("pointermove", (event) => this.watch(event));
      this.canvas.addEventListener("pointerdown", (event) => this.watch(event));
      new ResizeObserver(() => this.request()).observe(this.canvas);
      this.draw();
      this.setBlinking(true);
    } catch (error) {
      this.fail(error);
      return;
    }
    this.resolve(this);
    this.tell("ready");
  }

  fail(error) {
    this.reject(error);
    this.tell("error", error);
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  // ---- for those who embed it -----------------------------------------------

  /** Holds expressions: an array of coefficients (as many as you like, in the head model's order), or {name: value}. */
  setExpression(values) {
    const modes = this.header.modes || [];
    modes.forEach((mode, column) => {
      const value = Array.isArray(values) || ArrayBuffer.isView(values) ? values[mode.index] : values[mode.name];
      if (value !== undefined) this.hold(column, value);
    });
    this.changed();
  }

  /** Holds poses: {jaw, neck, rotation: [x, y, z] axis-angle, eyes: 6 (left, right) or 3, translation: meters}. */
  setPose(poses) {
    for (const [name, values] of Object.entries(poses)) {
      if (!this.columns[name]) throw new Error(`There is no ${name}, only ${Object.keys(this.columns).join(", ")}.`);
      const [start, count] = this.columns[name];
      const all = name === "eyes" && values.length === 3 ? [...values, ...values] : values;
      if (all.length !== count) throw new Error(`${name} has ${count} values, not ${all.length}.`);
      all.forEach((value, i) => this.hold(start + i, value));
    }
    this.changed();
  }

  hold(column, value) {
    if (!Number.isFinite(value)) throw new Error(`${value} is not a number.`);
    if (column < this.row.length) this.held.set(column, value);
  }

  /** Lets the motion have a column again, or all of them. */
  release(column) {
    if (column === undefined) this.held.clear();
    else this.held.delete(column);
    this.changed();
  }

  /** Plays the motion from where it is: {from: row, loop: true, fps}. */
  play({ from, loop = true, fps } = {}) {
    if (this.motion.length < 2) return;
    if (from !== undefined) this.seek(from);
    else if (this.time >= this.motion.length - 1) this.time = 0;
    this.loop = loop;
    if (fps) this.fps = fps;
    this.playing = true;
    this.tell("play");
    this.request();
  }

  pause() {
    this.playing = false;
    this.tell("pause");
  }

  /** Shows a row of the motion, or something between two. */
  seek(time) {
    this.time = clamp(time, 0, this.motion.length - 1);
    this.touch();
  }

  setFollowing(on) {
    this.following = on;
    this.request();
  }

  /** Blinks now and then, where it is known what closes the eyes of this head. */
  setBlinking(on) {
    clearTimeout(this.timer);
    this.request();
    this.blinking = on && this.blinks.closing !== undefined;
    if (!this.blinking) return;
    const wait = () => {
      this.timer = setTimeout(() => {
        this.blinks.begin(performance.now() / 1000);
        this.request();
        wait();
      }, 1000 * this.blinks.pause());
    };
    wait();
  }

  /** [r, g, b], each 0..1. */
  setBackground(color) {
    this.renderer.background = color;
    this.request();
  }

  /**
   * Looks through a camera as cameras.json has it: {position, rotation (camera to world, rows), fx, fy, width, height},
   * and if wanted cx and cy. null: the orbit again.
   */
  setCamera(camera) {
    this.given = camera && given(camera);
    this.request();
  }

  resetView() {
    this.orbit.reset();
    this.setCamera(null);
  }

  // ---- drawing ---------------------------------------------------------------

  changed() {
    this.tell("change");
    this.touch();
  }

  touch() {
    this.touched = performance.now() / 1000;
    this.request();
  }

  request() {
    if (!this.asked && this.renderer) this.asked = requestAnimationFrame((now) => this.frame(now / 1000));
  }

  watch(event) {
    if (!this.following || !this.head.turned) return;
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    this.gaze.lookAt(x, y, performance.now() / 1000);
    this.request();
  }

  frame(now) {
    this.asked = 0;
    const moving = this.moving; // since the frame before
    const seconds = moving ? Math.min(now - this.last, 0.25) : 0;
    this.last = now;
    if (this.playing) this.advance(seconds);
    const alive = this.draw(now, seconds);
    this.moving = this.playing || alive || now - this.touched < LINGER;
    this.adapt(moving ? seconds : 0);
    this.tell("frame", { time: this.time, seconds });
    if (this.moving) this.request();
  }

  advance(seconds) {
    this.time += seconds * this.fps;
    if (this.time < this.motion.length - 1) return;
    if (this.loop) this.time %= this.motion.length - 1;
    else {
      this.time = this.motion.length - 1;
      this.pause();
    }
  }

  /** Draws the present moment at once; whether something moves by itself. */
  draw(now = performance.now() / 1000, seconds = 0) {
    const camera = this.given || this.orbit.camera(...this.size());
    let alive = false;
    if (this.row.length) {
      this.blend();
      if (this.following) alive = this.gaze.act(this.row, this.head, camera, now, seconds);
      if (this.blinking) alive = this.blinks.act(this.row, now) || alive;
    }
    for (const [column, value] of this.held) this.row[column] = value;
    if (!this.drawn || this.row.some((value, i) => value !== this.drawn[i])) {
      this.head.pose(this.row);
      this.renderer.move(this.head.frames, this.head.code);
      this.drawn = this.row.slice();
    }
    this.renderer.draw(camera);
    return alive;
  }

  /** The row at this time, between two rows of the motion. */
  blend() {
    const first = Math.floor(this.time);
    const [a, b] = [this.motion[first], this.motion[Math.min(first + 1, this.motion.length - 1)]];
    const share = this.time - first;
    for (let i = 0; i < this.row.length; i++) this.row[i] = a[i] + share * (b[i] - a[i]);
  }

  /** Pixels to draw. */
  size() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2) * this.scale;
    return [this.canvas.clientWidth, this.canvas.clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
  }

  /** Fewer pixels while it moves on a slow device; all of them once it rests. */
  adapt(seconds) {
    if (!this.moving) {
      this.mean = 0;
      if (this.scale < 1) this.request();
      this.scale = 1;
    }
    if (!seconds || !this.moving) return;
    this.mean = this.mean ? 0.9 * this.mean + 0.1 * seconds : Math.sqrt(SLOW * QUICK);
    if (this.mean > SLOW && this.scale > COARSEST) this.scale *= 0.85;
    else if (this.mean < QUICK && this.scale < 1) this.scale = Math.min(1, this.scale * 1.1);
    else return;
    this.mean = 0;
  }
}

/** The rows of the motion: expression, rotation, neck, jaw, eyes, translation. */
function motionRows(header, arrays) {
  const parts = [arrays.expression, arrays.poses, arrays.translation].map((array) => [numbers(array), array.shape[1]]);
  return Array.from({ length: arrays.poses.shape[0] }, (_, t) => {
    const row = parts.flatMap(([values, width]) => Array.from(values.subarray(t * width, (t + 1) * width)));
    header.modes.forEach((mode, column) => (row[column] *= mode.tick));
    return Float32Array.from(row);
  });
}

/** A camera of cameras.json as `Renderer.draw` takes it. */
function given({ position, rotation, fx, fy, width, height, cx = width / 2, cy = height / 2 }) {
  const turn = transposed(rotation.flat());
  return { rotation: turn, shift: times(turn, position).map((value) => -value), fx, fy, cx, cy, width, height };
}
