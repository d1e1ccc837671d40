// How the element looks. On a narrow one the panel is a sheet at the bottom.

export const STYLE = `
:host {
  --background: #fff; --ink: #23262b; --soft: #6b7178; --line: #0000001f; --pane: #ffffffe8; --accent: #2f6fb2;
  position: relative; display: block; overflow: hidden; background: var(--background); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  container-type: size; color-scheme: light;
}
:host([dark]) {
  --ink: #eceef0; --soft: #a3a9b0; --line: #ffffff26; --pane: #1d2127e8; --accent: #7fb2e8; color-scheme: dark;
}
main { display: flex; height: 100%; }
.stage { position: relative; flex: 1; min-width: 0; min-height: 0; }
canvas {
  position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; cursor: grab; outline: none; opacity: 0;
}
canvas:active { cursor: grabbing; }
canvas:focus-visible { box-shadow: inset 0 0 0 2px var(--accent); }
:host([drawn]) canvas { opacity: 1; }
::slotted(img) { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
:host([drawn]) ::slotted(img) { visibility: hidden; }
.message { position: absolute; inset: auto 24px 24px; margin: 0; text-align: center; }
.message:empty { display: none; }
.message { padding: 12px 16px; border-radius: 10px; background: var(--pane); box-shadow: 0 1px 8px #0002; }

.bar {
  position: absolute; left: 50%; bottom: 16px; transform: translateX(-50%); display: flex; align-items: center; gap: 4px;
  width: min(520px, 100% - 32px); box-sizing: border-box; padding: 4px 6px; border-radius: 24px; background: var(--pane);
  box-shadow: 0 1px 2px #0002, 0 4px 20px #0001; backdrop-filter: blur(8px);
}
.bar .grow { flex: 1; min-width: 0; margin: 0 6px; }
button { font: inherit; color: inherit; background: none; border: 0; cursor: pointer; }
.bar button { flex: none; display: grid; place-items: center; width: 36px; height: 36px; padding: 0; border-radius: 50%; }
.bar svg { width: 20px; height: 20px; fill: currentColor; }
button:hover { background: var(--line); }
:is(button, input):focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
input { accent-color: var(--accent); }

.panel {
  flex: none; width: 304px; box-sizing: border-box; overflow-y: auto; padding: 20px; display: none;
  border-left: 1px solid var(--line); background: var(--pane); scrollbar-width: thin;
}
:host([open]) .panel { display: block; }
h1 { margin: 0 0 4px; font-size: 17px; font-weight: 600; overflow-wrap: anywhere; }
h2 { margin: 18px 0 6px; font-size: 12px; font-weight: 600; color: var(--soft); }
.slider { display: grid; grid-template-columns: 1fr 104px 18px; align-items: center; gap: 5px; min-height: 27px; }
.slider span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.slider input { width: 100%; margin: 0; }
.free { visibility: hidden; padding: 0; width: 18px; height: 18px; line-height: 1; border-radius: 50%; color: var(--soft); }
.held .free { visibility: visible; }
.held span { font-weight: 600; }
.wide { width: 100%; margin-top: 12px; padding: 7px; border: 1px solid var(--line); border-radius: 8px; }
.switch { display: flex; align-items: center; gap: 8px; min-height: 28px; cursor: pointer; }
.switch input { margin: 0; width: 16px; height: 16px; }
.swatches { display: flex; gap: 8px; margin-top: 8px; }
.swatch, .swatches input {
  width: 30px; height: 30px; padding: 0; border: 1px solid var(--line); border-radius: 50%; overflow: hidden; cursor: pointer;
}
.swatches input { background: conic-gradient(#e66, #ec5, #6c6, #5bd, #76d, #e66); }
.swatches input::-webkit-color-swatch, .swatches input::-moz-color-swatch { opacity: 0; }

@container (max-width: 720px) {
  main { flex-direction: column; }
  .bar { bottom: 12px; }
  .bar button { width: 42px; height: 42px; }
  .panel { width: auto; max-height: 46cqh; padding: 14px 18px 24px; border: 0; box-shadow: 0 -1px 12px #0002; }
  .slider { min-height: 38px; grid-template-columns: 1fr 48cqw 28px; }
  .free { width: 28px; height: 28px; }
  .switch { min-height: 38px; }
  .swatch, .swatches input { width: 38px; height: 38px; }
}
`;
