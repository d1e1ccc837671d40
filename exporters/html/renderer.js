// Draws the Gaussians: each carried by its triangle, sorted back to front, blended, put before a background.

import { numbers } from "./data.js";
import { dot, times, transposed } from "./math.js";
import { FINISH_FRAGMENT, FINISH_VERTEX, PROJECT_FRAGMENT, PROJECT_VERTEX, SPLAT_FRAGMENT, SPLAT_VERTEX, defines } from "./shaders.js";

const BUCKETS = 1 << 16;
const PROJECTED = ["axes2d", "paint", "center"]; // what is computed of a Gaussian, 4 numbers each

export class Renderer {
  /** `canvas` gets a WebGL2 context; `lost` is called when the browser takes it away. */
  constructor(canvas, { header, arrays }, lost) {
    const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    if (!gl) throw new Error("This browser has no WebGL2, which this page draws with. Any current one has it.");
    this.gl = gl;
    this.canvas = canvas;
    this.own = header.background; // trained before it, and calibrated with it
    this.background = header.background;
    this.means = numbers(arrays.means);
    this.triangles = arrays.triangles.values;
    this.count = this.triangles.length;
    this.depths = new Float32Array(this.count);
    this.order = new Uint32Array(this.count);
    this.slots = new Uint32Array(BUCKETS + 1);
    this.widest = Math.min(gl.getParameter(gl.MAX_TEXTURE_SIZE), 4096);
    canvas.addEventListener("webglcontextlost", lost);

    const { rules, network } = header;
    const constants = {
      NEAR: rules.near, LOW_PASS: rules.lowPass, GUARD: rules.guard, MIN_ALPHA: rules.minAlpha, MAX_ALPHA: rules.maxAlpha,
      RESIDUAL_LIMIT: rules.residualLimit, COEFFICIENTS: arrays.harmonics.shape[1],
      CHANGES: arrays.changes ? arrays.changes.shape[1] : 0,
      LAYERS: network ? network.layers : 0, HIDDEN: network ? Math.max(network.hidden, 3) : 3,
    };
    this.projecting = program(gl, defines(constants), PROJECT_VERTEX, PROJECT_FRAGMENT, PROJECTED);
    this.splatting = program(gl, defines(constants), SPLAT_VERTEX, SPLAT_FRAGMENT);
    this.finishing = program(gl, defines(constants), FINISH_VERTEX, FINISH_FRAGMENT);
    this.upload(arrays, network);
    this.target = null;
    // Eight bits would round a hundred times per pixel.
    this.deep = gl.getExtension("EXT_color_buffer_float") || gl.getExtension("EXT_color_buffer_half_float");
  }

  upload(arrays, network) {
    const gl = this.gl;
    this.splats = this.texture(gl.RGBA32F, gl.RGBA, gl.FLOAT, splatTexels(this, arrays));
    this.harmonics = this.texture(gl.RGBA32I, gl.RGBA_INTEGER, gl.INT, packedPairs(arrays, this.count));
    this.steps = [...arrays.harmonics.step, arrays.changes?.step || 0]; // the constant coefficient has one of its own
    this.frames = null;
    this.network = network && this.texture(gl.R32F, gl.RED, gl.FLOAT, arrays.network.values);

    this.indices = gl.createBuffer();
    this.sorted = gl.createVertexArray();
    gl.bindVertexArray(this.sorted);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.indices);
    gl.bufferData(gl.ARRAY_BUFFER, this.order.byteLength, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);

    // The same rows as buffer, where they are computed, and as texture, where the corners read them.
    const width = Math.min(3 * this.count, this.widest);
    this.rows = { width, height: Math.ceil((3 * this.count) / width), buffer: gl.createBuffer() };
    this.rows.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.rows.texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA32F, this.rows.width, this.rows.height);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.bindBuffer(gl.PIXEL_UNPACK_BUFFER, this.rows.buffer);
    gl.bufferData(gl.PIXEL_UNPACK_BUFFER, 16 * this.rows.width * this.rows.height, gl.DYNAMIC_COPY);
    gl.bindBuffer(gl.PIXEL_UNPACK_BUFFER, null);

    const corners = new Uint32Array(6 * this.count);
    for (let g = 0; g < this.count; g++) corners.set([0, 1, 2, 2, 1, 3].map((corner) => 4 * g + corner), 6 * g);
    this.corners = gl.createVertexArray();
    gl.bindVertexArray(this.corners);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, corners, gl.STATIC_DRAW);
    this.feedback = gl.createTransformFeedback();
    this.nothing = gl.createVertexArray();
  }

  /** A texture of as many rows as the values need; the rest of the last one is zero. */
  texture(internal, format, type, values, texture = this.gl.createTexture()) {
    const gl = this.gl;
    const channels = format === gl.RED ? 1 : 4;
    const texels = Math.max(values.length / channels, 1);
    const width = Math.min(texels, this.widest);
    const height = Math.ceil(texels / width);
    if (height > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error("This device's textures are too small for it.");
    let filled = values;
    if (values.length !== width * height * channels) {
      filled = new values.constructor(width * height * channels);
      filled.set(values);
    }
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, internal, width, height, 0, format, type, filled);
    return texture;
  }

  /** Takes over the frames of all triangles, 12 numbers each, and the code by which the colors change, if they do. */
  move(frames, code) {
    this.carry = frames;
    this.code = code;
    const gl = this.gl;
    this.frames = this.texture(gl.RGBA32F, gl.RGBA, gl.FLOAT, frames, this.frames || gl.createTexture());
  }

  /** Sorts the Gaussians back to front along a camera's axis [3]: counting sort, stable. */
  sort(axis) {
    const { carry, means, triangles, depths, order, slots, count } = this;
    let [near, far] = [Infinity, -Infinity];
    for (let g = 0; g < count; g++) {
      const at = 12 * triangles[g];
      const [x, y, z] = [means[3 * g], means[3 * g + 1], means[3 * g + 2]];
      const depth =
        axis[0] * (carry[at] * x + carry[at + 1] * y + carry[at + 2] * z + carry[at + 3]) +
        axis[1] * (carry[at + 4] * x + carry[at + 5] * y + carry[at + 6] * z + carry[at + 7]) +
        axis[2] * (carry[at + 8] * x + carry[at + 9] * y + carry[at + 10] * z + carry[at + 11]);
      depths[g] = depth;
      if (depth < near) near = depth;
      if (depth > far) far = depth;
    }
    const scale = far > near ? (BUCKETS - 1) / (far - near) : 0;
    slots.fill(0);
    for (let g = 0; g < count; g++) {
      depths[g] = Math.trunc((far - depths[g]) * scale);
      slots[depths[g] + 1]++;
    }
    for (let b = 0; b < BUCKETS; b++) slots[b + 1] += slots[b];
    // Of equal ones the first is nearest: it comes last.
    for (let g = 0; g < count; g++) order[slots[depths[g]]++] = g;
  }

  /** Draws the view of a camera: {rotation (world to camera, 9), shift (3), fx, fy, cx, cy, width, height}, OpenCV axes. */
  draw(camera) {
    const gl = this.gl;
    this.sort(camera.rotation.slice(6));
    gl.bindBuffer(gl.ARRAY_BUFFER, this.indices);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, this.order);
    gl.bindBuffer(gl.ARRAY_BUFFER, null);
    this.project(camera);

    this.resize(camera.width, camera.height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target.buffer);
    gl.viewport(0, 0, camera.width, camera.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(this.splatting.program);
    this.bind([this.rows.texture], [this.splatting.projected]);
    gl.bindVertexArray(this.corners);
    gl.drawElements(gl.TRIANGLES, 6 * this.count, gl.UNSIGNED_INT, 0);

    const finish = this.finishing;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.disable(gl.BLEND);
    gl.useProgram(finish.program);
    this.bind([this.target.texture, this.network], [finish.picture, finish.network]);
    gl.uniform3fv(finish.own, this.own);
    gl.uniform3fv(finish.background, this.background);
    gl.bindVertexArray(this.nothing);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  /** Ellipse and color of every Gaussian, in the order of drawing. */
  project(camera) {
    const gl = this.gl;
    const { rotation: r, shift: s } = camera;
    const places = this.projecting;
    gl.useProgram(places.program);
    this.bind([this.frames, this.splats, this.harmonics], [places.frames, places.splats, places.harmonics]);
    gl.uniform4fv(places.world, [0, 1, 2].flatMap((i) => [...r.slice(3 * i, 3 * i + 3), s[i]]));
    gl.uniform3fv(places.eye, times(transposed(r), s).map((value) => -value));
    gl.uniform4f(places.lens, camera.fx, camera.fy, camera.cx, camera.cy);
    gl.uniform2f(places.size, camera.width, camera.height);
    gl.uniform3fv(places.steps, this.steps);
    if (places.code) gl.uniform1fv(places.code, this.code);
    gl.bindVertexArray(this.sorted);
    gl.bindTransformFeedback(gl.TRANSFORM_FEEDBACK, this.feedback);
    gl.bindBufferBase(gl.TRANSFORM_FEEDBACK_BUFFER, 0, this.rows.buffer);
    gl.enable(gl.RASTERIZER_DISCARD);
    gl.beginTransformFeedback(gl.POINTS);
    gl.drawArrays(gl.POINTS, 0, this.count);
    gl.endTransformFeedback();
    gl.disable(gl.RASTERIZER_DISCARD);
    gl.bindBufferBase(gl.TRANSFORM_FEEDBACK_BUFFER, 0, null);
    gl.bindTransformFeedback(gl.TRANSFORM_FEEDBACK, null);

    const { width, height, buffer, texture } = this.rows;
    gl.bindBuffer(gl.PIXEL_UNPACK_BUFFER, buffer);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, gl.RGBA, gl.FLOAT, 0);
    gl.bindBuffer(gl.PIXEL_UNPACK_BUFFER, null);
  }

  bind(textures, places) {
    const gl = this.gl;
    textures.forEach((texture, unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      if (places[unit]) gl.uniform1i(places[unit], unit);
    });
    gl.activeTexture(gl.TEXTURE0 + textures.length);
  }

  /** The canvas, and the picture that is blended before it is shown, get this size. */
  resize(width, height) {
    const gl = this.gl;
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    if (this.target?.width === width && this.target?.height === height) return;
    if (this.target) gl.deleteTexture(this.target.texture);
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, this.deep ? gl.RGBA16F : gl.RGBA8, width, height);
    const buffer = this.target?.buffer || gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    this.target = { width, height, texture, buffer };
  }
}

/** Two integers of 16 bits in each channel, as many texels for every Gaussian. */
function packedPairs({ harmonics, changes }, count) {
  const parts = changes ? [harmonics, changes] : [harmonics];
  const sizes = parts.map(({ shape }) => 3 * shape[1]);
  const room = 8 * Math.ceil((sizes[0] + (sizes[1] || 0)) / 8);
  const pairs = new Int16Array(room * count);
  let start = 0;
  for (const [part, { values }] of parts.entries()) {
    const own = sizes[part];
    for (let g = 0; g < count; g++) pairs.set(values.subarray(own * g, own * (g + 1)), room * g + start);
    start += own;
  }
  return new Int32Array(pairs.buffer); // the low half first, as on every machine that has a browser
}

/** Three texels per Gaussian: mean and triangle; quaternion wxyz; deviations and opacity. */
function splatTexels({ means, triangles, count }, arrays) {
  const turns = numbers(arrays.rotations); // the three smaller components
  const largest = arrays.largest.values;
  const scales = numbers(arrays.scales); // logarithms
  const opacities = numbers(arrays.opacities);
  const texels = new Float32Array(12 * count);
  for (let g = 0; g < count; g++) {
    const three = turns.subarray(3 * g, 3 * g + 3);
    const quaternion = [...three];
    quaternion.splice(largest[g], 0, Math.sqrt(Math.max(1 - dot(three, three), 0)));
    const length = Math.hypot(...quaternion);
    texels.set(means.subarray(3 * g, 3 * g + 3), 12 * g);
    texels[12 * g + 3] = triangles[g];
    for (let c = 0; c < 4; c++) texels[12 * g + 4 + c] = quaternion[c] / length;
    for (let c = 0; c < 3; c++) texels[12 * g + 8 + c] = Math.exp(scales[3 * g + c]);
    texels[12 * g + 11] = opacities[g];
  }
  return texels;
}

/** A program and the places of its uniforms by name; `feedback`: the outputs that are kept. */
function program(gl, head, vertex, fragment, feedback) {
  const linked = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, head + source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) {
      throw new Error(`This device cannot compile a shader: ${gl.getShaderInfoLog(shader)}`);
    }
    gl.attachShader(linked, shader);
  }
  if (feedback) gl.transformFeedbackVaryings(linked, feedback, gl.INTERLEAVED_ATTRIBS);
  gl.linkProgram(linked);
  const places = { program: linked };
  const uniforms = gl.getProgramParameter(linked, gl.ACTIVE_UNIFORMS);
  for (let i = 0; i < uniforms; i++) {
    const name = gl.getActiveUniform(linked, i).name.replace("[0]", "");
    places[name] = gl.getUniformLocation(linked, name);
  }
  return places;
}
