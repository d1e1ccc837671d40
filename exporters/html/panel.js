// The panel: sliders, switches and the bar below the picture.

import { clamp } from "./math.js";

const STRONGEST = 14; // sliders of expressions
const ICONS = {
  play: "M8 5v14l11-7z",
  pause: "M7 5h4v14H7zM13 5h4v14h-4z",
  sliders: "M4 6h8v2H4zM16 6h4v2h-4zM12 4h3v6h-3zM4 16h4v2H4zM12 16h8v2h-8zM8 14h3v6H8z",
  whole: "M4 4h6v2H6v4H4zM14 4h6v6h-2V6h-4zM4 14h2v4h4v2H4zM18 14h2v6h-6v-2h4z",
  front: "M12 5V1L7 6l5 5V7a5 5 0 1 1-5 5H5a7 7 0 1 0 7-7z",
};
const BACKGROUNDS = { White: "#ffffff", Gray: "#b9bdc2", Night: "#14171c" };
// Sliders of the poses: name, what it turns, which of its numbers (both eyes have three each), range in radians.
const POSES = [
  ["Jaw, open", "jaw", [0], -0.05, 0.6],
  ["Jaw, sideways", "jaw", [1], -0.25, 0.25],
  ["Neck, nod", "neck", [0], -0.5, 0.5],
  ["Neck, turn", "neck", [1], -0.7, 0.7],
  ["Neck, tilt", "neck", [2], -0.5, 0.5],
  ["Eyes, up or down", "eyes", [0, 3], -0.4, 0.4],
  ["Eyes, sideways", "eyes", [1, 4], -0.55, 0.55],
];

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function button(icon, label, act) {
  const made = make("button", { type: "button", title: label, onclick: act });
  made.setAttribute("aria-label", label);
  setIcon(made, icon);
  return made;
}

function setIcon(element, icon) {
  element.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`;
}

/** A slider that holds columns of the avatar's row; its button gives them back to the motion. */
function slider(avatar, name, columns, low, high) {
  const input = make("input", { type: "range", min: low, max: high, step: (high - low) / 400 });
  const free = make("button", { type: "button", className: "free", title: "Let the motion have it again", textContent: "×" });
  free.setAttribute("aria-label", `${name}: let the motion have it again`);
  const line = make("label", { className: "slider" }, make("span", { textContent: name }), input, free);
  input.addEventListener("input", () => {
    for (const column of columns) avatar.hold(column, input.valueAsNumber);
    avatar.changed();
  });
  free.addEventListener("click", (event) => {
    event.preventDefault();
    for (const column of columns) avatar.release(column);
  });
  const show = () => {
    const held = avatar.held.has(columns[0]);
    line.classList.toggle("held", held);
    if (!held || document.activeElement !== input) input.value = avatar.row[columns[0]];
  };
  return { line, show };
}

/** "mouthSmile_L" as people write it. */
function readable(name) {
  const words = name.replace(/_L(eft)?$/, " left").replace(/_R(ight)?$/, " right").replace(/([a-z])([A-Z])/g, "$1 $2");
  const text = words.replaceAll("_", " ").toLowerCase();
  return text[0].toUpperCase() + text.slice(1);
}

function sliders(avatar) {
  const modes = avatar.header.modes || [];
  const strongest = modes.map((mode, column) => ({ ...mode, column })).sort((a, b) => b.strength - a.strength);
  const expressions = strongest.slice(0, STRONGEST).map(({ name, index, column, low, high }) =>
    slider(avatar, name ? readable(name) : `Expression ${index + 1}`, [column], low, high));
  const poses = !modes.length ? [] : POSES.map(([name, part, places, low, high]) =>
    slider(avatar, name, places.map((place) => avatar.columns[part][0] + place), low, high));
  return { expressions, poses };
}

function switches(avatar) {
  const check = (text, on, act) => {
    const input = make("input", { type: "checkbox", checked: on, onchange: () => act(input.checked) });
    return make("label", { className: "switch" }, input, make("span", { textContent: text }));
  };
  const made = [];
  if (avatar.header.modes) made.push(check("Eyes follow the pointer", avatar.following, (on) => avatar.setFollowing(on)));
  if (avatar.blinks.closing) made.push(check("Blink", avatar.blinking, (on) => avatar.setBlinking(on)));
  return made;
}

const parts = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16) / 255);
const asHex = (rgb) => "#" + rgb.map((part) => Math.round(255 * clamp(part, 0, 1)).toString(16).padStart(2, "0")).join("");

function backgrounds(avatar, host) {
  const set = (color) => {
    avatar.setBackground(parts(color));
    dress(host, parts(color));
  };
  const own = asHex(avatar.header.background);
  const choices = { "As in training": own, ...BACKGROUNDS };
  const seen = Object.entries(choices).filter(([, color], i, all) => all.findIndex((other) => other[1] === color) === i);
  const swatches = seen.map(([name, color]) => {
    const made = make("button", { type: "button", className: "swatch", title: name, onclick: () => set(color) });
    made.setAttribute("aria-label", `Background: ${name}`);
    made.style.background = color;
    return made;
  });
  const free = make("input", { type: "color", value: own, title: "Another color", oninput: () => set(free.value) });
  free.setAttribute("aria-label", "Background: another color");
  return make("div", { className: "swatches" }, ...swatches, free);
}

/** Light or dark controls, whatever the background asks for. */
export function dress(host, [r, g, b]) {
  host.style.setProperty("--background", asHex([r, g, b]));
  host.toggleAttribute("dark", 0.3 * r + 0.6 * g + 0.1 * b < 0.5);
}

/** The bar below the picture and the panel beside it. `host` is the element around both. */
export function controls(avatar, host) {
  const { expressions, poses } = sliders(avatar);
  const section = (title, ...children) => make("section", {}, make("h2", { textContent: title }), ...children);
  const everything = [...expressions, ...poses];
  const panel = make("aside", { className: "panel" });
  panel.setAttribute("aria-label", "Controls");
  panel.append(make("h1", { textContent: avatar.header.title }));
  if (expressions.length) panel.append(section("Expression", ...expressions.map(({ line }) => line)));
  if (poses.length) panel.append(section("Pose", ...poses.map(({ line }) => line)));
  if (everything.length) {
    panel.append(make("button", { type: "button", className: "wide", textContent: "Back to the motion", onclick: () => avatar.release() }));
  }
  panel.append(section("Picture", ...switches(avatar), backgrounds(avatar, host)));

  const bar = make("div", { className: "bar" });
  if (avatar.motion.length > 1) bar.append(...player(avatar));
  else bar.append(make("span", { className: "grow" }));
  const toggle = button("sliders", "Controls", () => {
    const open = host.toggleAttribute("open");
    toggle.setAttribute("aria-expanded", open);
  });
  bar.append(button("front", "First view again (0)", () => avatar.resetView()));
  if (document.fullscreenEnabled) {
    bar.append(button("whole", "Full screen (F)", () => fullScreen(host)));
  }
  bar.append(toggle);
  host.addEventListener("keydown", (event) => {
    const typing = event.composedPath()[0].tagName === "INPUT";
    if (typing || event.ctrlKey || event.metaKey) return;
    if (event.key === " " && event.composedPath()[0].tagName !== "BUTTON") {
      avatar.playing ? avatar.pause() : avatar.play();
      event.preventDefault();
    } else if (event.key === "f" && document.fullscreenEnabled) fullScreen(host);
  });

  const show = () => everything.forEach((one) => one.show());
  avatar.addEventListener("frame", show);
  avatar.addEventListener("change", show);
  show();
  return { panel, bar };
}

function fullScreen(host) {
  if (document.fullscreenElement) document.exitFullscreen();
  else host.requestFullscreen().catch(() => {});
}

function player(avatar) {
  const line = make("input", { type: "range", className: "grow", min: 0, max: avatar.motion.length - 1, step: "any", value: 0 });
  line.setAttribute("aria-label", "Time");
  const play = button("play", "Play (space)", () => (avatar.playing ? avatar.pause() : avatar.play()));
  line.addEventListener("input", () => {
    avatar.pause();
    avatar.seek(line.valueAsNumber);
  });
  const label = () => {
    setIcon(play, avatar.playing ? "pause" : "play");
    play.setAttribute("aria-label", avatar.playing ? "Pause (space)" : "Play (space)");
  };
  avatar.addEventListener("play", label);
  avatar.addEventListener("pause", label);
  avatar.addEventListener("frame", () => (line.value = avatar.time));
  label();
  return [play, line];
}
