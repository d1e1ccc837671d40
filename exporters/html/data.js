// Reads the avatar's data; exporters/html/pack.py writes it and explains the layout.

export function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** Uint8Array (gzip) -> {header, arrays: {name: {values, shape, step}}}; what an integer stands for is value * step. */
export async function unpack(compressed) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser is too old for this page: it needs Chrome 80, Firefox 113 or Safari 16.4.");
  }
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const arrays = {};
  let start = 4 + length;
  for (const { name, type, shape, step, delta } of header.arrays) {
    const count = shape.reduce((a, b) => a * b, 1);
    const width = { i8: 1, i16: 2, i32: 4, f32: 4 }[type];
    const part = bytes.subarray(start, start + count * width);
    start += count * width;
    const values = type === "f32" ? new Float32Array(part.slice().buffer) : integers(part, count, width);
    if (delta) sumUp(values, count / shape[0]);
    arrays[name] = { values, shape, step };
  }
  return { header, arrays };
}

/** The lowest bytes of all values stand first, then the next: the high ones are alike, and shrink to almost nothing. */
function integers(bytes, count, width) {
  const values = new { 1: Int8Array, 2: Int16Array, 4: Int32Array }[width](count);
  for (let plane = 0; plane < width; plane++) {
    for (let i = 0; i < count; i++) values[i] |= bytes[plane * count + i] << (8 * plane);
  }
  return values;
}

/** Each row of `stride` values was stored as its difference to the one before, modulo the range of its type. */
function sumUp(values, stride) {
  for (let i = stride; i < values.length; i++) values[i] += values[i - stride];
}

/** The numbers that integers stand for. */
export function numbers({ values, step }) {
  return values instanceof Float32Array ? values : Float32Array.from(values, (value) => value * step);
}
