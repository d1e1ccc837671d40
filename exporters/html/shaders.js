// The shaders. The rules of the drawing are those of gaussian_renderer/backends/reference.py; its constants come with
// the data (NEAR, LOW_PASS, ...: see `defines`).

/** The lines that put the data's constants in front of a shader. */
export function defines(constants) {
  const lines = Object.entries(constants).map(([name, value]) => {
    const text = Number.isInteger(value) && /^(COEFFICIENTS|CHANGES|LAYERS|HIDDEN)$/.test(name) ? value : value.toExponential();
    return `#define ${name} ${text}`;
  });
  return ["#version 300 es", "precision highp float;", "precision highp int;", ...lines, ""].join("\n");
}

// Run once per Gaussian, back to front, before anything is drawn: its ellipse and color (transform feedback).
export const PROJECT_VERTEX = `
precision highp sampler2D;
precision highp isampler2D;

layout(location = 0) in uint splat;  // row of the Gaussian

uniform sampler2D frames;     // per triangle three texels: the rows of (k R | origin)
uniform sampler2D splats;     // per Gaussian: mean and triangle; quaternion wxyz; deviations and opacity
uniform isampler2D harmonics; // per Gaussian its coefficients and the changes of the first, rgb after rgb, two numbers
                              // of 16 bits in each channel
uniform vec4 world[3];        // world to camera, rows
uniform vec3 eye;             // camera's center
uniform vec4 lens;            // fx, fy, cx, cy, pixels
uniform vec2 size;            // pixels
uniform vec3 steps;           // what 1 stands for in the constant coefficient, in the others, and in the changes
#if CHANGES > 0
uniform float code[CHANGES];  // how much of each change the expression of the moment asks for
#endif

out vec4 axes2d;              // from the center to the ends of the ellipse alpha = MIN_ALPHA, large and small; NDC
out vec4 paint;               // color and opacity
out vec4 center;              // NDC; and how many deviations those ends are away, 0: culled

vec4 fetch(sampler2D from, int at) {
  int width = textureSize(from, 0).x;
  return texelFetch(from, ivec2(at % width, at / width), 0);
}

#define TEXELS ((3 * (COEFFICIENTS + CHANGES) + 7) / 8)
float values[8 * TEXELS];

void unpack() {
  int width = textureSize(harmonics, 0).x;
  for (int t = 0; t < TEXELS; t++) {
    int at = int(splat) * TEXELS + t;
    ivec4 pairs = texelFetch(harmonics, ivec2(at % width, at / width), 0);
    for (int c = 0; c < 4; c++) {
      values[8 * t + 2 * c] = float((pairs[c] << 16) >> 16);
      values[8 * t + 2 * c + 1] = float(pairs[c] >> 16);
    }
  }
}

#define coefficient(k) vec3(values[3 * (k)], values[3 * (k) + 1], values[3 * (k) + 2])

vec3 color(vec3 d) {
  unpack();
  vec3 base = steps.x * coefficient(0);
#if CHANGES > 0
  for (int k = 0; k < CHANGES; k++) base += steps.z * code[k] * coefficient(COEFFICIENTS + k);
#endif
  base *= 0.28209479177387814;
  vec3 more = vec3(0.0);
#if COEFFICIENTS >= 4
  more += 0.4886025119029199 * (d.z * coefficient(2) - d.y * coefficient(1) - d.x * coefficient(3));
#endif
#if COEFFICIENTS >= 9
  vec3 s = d * d;
  more += 1.0925484305920792 * (d.x * d.y * coefficient(4) - d.y * d.z * coefficient(5) - d.x * d.z * coefficient(7)
    + 0.5 * (s.x - s.y) * coefficient(8));
  more += 0.31539156525252005 * (2.0 * s.z - s.x - s.y) * coefficient(6);
#endif
#if COEFFICIENTS >= 16
  more -= 0.5900435899266435 * (d.y * (3.0 * s.x - s.y) * coefficient(9) + d.x * (s.x - 3.0 * s.y) * coefficient(15));
  more += 2.890611442640554 * d.x * d.y * d.z * coefficient(10);
  more -= 0.4570457994644658 * (4.0 * s.z - s.x - s.y) * (d.y * coefficient(11) + d.x * coefficient(13));
  more += 0.3731763325901154 * d.z * (2.0 * s.z - 3.0 * s.x - 3.0 * s.y) * coefficient(12);
  more += 1.445305721320277 * d.z * (s.x - s.y) * coefficient(14);
#endif
  return max(base + steps.y * more + 0.5, 0.0);
}

mat3 turn(vec4 q) {  // columns
  float w = q.x, x = q.y, y = q.z, z = q.w;
  return mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

void main() {
  axes2d = vec4(0.0);
  paint = vec4(0.0);
  center = vec4(0.0);
  int row = 3 * int(splat);
  vec4 first = fetch(splats, row), last = fetch(splats, row + 2);
  int triangle = 3 * int(first.w);
  mat4x3 carry = transpose(mat3x4(fetch(frames, triangle), fetch(frames, triangle + 1), fetch(frames, triangle + 2)));
  vec3 mean = carry * vec4(first.xyz, 1.0);
  mat3 axes = mat3(carry) * turn(fetch(splats, row + 1));
  axes[0] *= last.x;
  axes[1] *= last.y;
  axes[2] *= last.z;

  mat4x3 view = transpose(mat3x4(world[0], world[1], world[2]));
  vec3 t = view * vec4(mean, 1.0);
  if (t.z <= NEAR || last.w < MIN_ALPHA) return;
  axes = mat3(view) * axes;
  vec2 slope = t.xy / t.z;
  vec2 guard = GUARD * size / (2.0 * lens.xy);
  vec2 held = clamp(slope, -(lens.zw / lens.xy + guard), (size - lens.zw) / lens.xy + guard);
  mat3 rows = transpose(axes);
  vec3 u = lens.x / t.z * (rows[0] - held.x * rows[2]);
  vec3 v = lens.y / t.z * (rows[1] - held.y * rows[2]);
  float xx = dot(u, u) + LOW_PASS, xy = dot(u, v), yy = dot(v, v) + LOW_PASS;
  vec3 normal = cross(u, v);
  float determinant = dot(normal, normal) + LOW_PASS * (xx + yy) - LOW_PASS * LOW_PASS;

  float middle = 0.5 * (xx + yy), radius = length(vec2(0.5 * (xx - yy), xy));
  float large = middle + radius, small = determinant / large;
  vec2 axis = xx >= yy ? vec2(large - yy, xy) : vec2(xy, large - xx);
  axis = radius > 1e-6 * middle ? normalize(axis) : vec2(1.0, 0.0);

  float reach = sqrt(2.0 * log(last.w / MIN_ALPHA));
  vec2 ndc = vec2(2.0, -2.0) / size;
  axes2d = reach * vec4(sqrt(large) * axis * ndc, sqrt(small) * vec2(-axis.y, axis.x) * ndc);
  center = vec4((lens.xy * slope + lens.zw) * ndc + vec2(-1.0, 1.0), reach, 0.0);
  paint = vec4(color(normalize(mean - eye)), last.w);
}`;

export const PROJECT_FRAGMENT = "void main() {}";

// Four corners per Gaussian. They are no instances, of which software renderers make a drawing each.
export const SPLAT_VERTEX = `
precision highp sampler2D;

uniform sampler2D projected;  // three texels per Gaussian: axes2d, paint, center

out vec2 place;               // in standard deviations along the ellipse's axes
flat out vec4 tint;

vec4 fetch(int at) {
  int width = textureSize(projected, 0).x;
  return texelFetch(projected, ivec2(at % width, at / width), 0);
}

void main() {
  int row = 3 * (gl_VertexID >> 2);
  vec2 corner = vec2(gl_VertexID & 1, (gl_VertexID >> 1) & 1) * 2.0 - 1.0;
  vec4 axes2d = fetch(row), center = fetch(row + 2);
  tint = fetch(row + 1);
  place = corner * center.z;
  gl_Position = vec4(center.xy + corner.x * axes2d.xy + corner.y * axes2d.zw, 0.0, 1.0);
}`;

export const SPLAT_FRAGMENT = `
in vec2 place;
flat in vec4 tint;
out vec4 result;

void main() {
  float alpha = tint.a * exp(-0.5 * dot(place, place));
  if (alpha < MIN_ALPHA) discard;
  alpha = min(alpha, MAX_ALPHA);
  result = vec4(tint.rgb * alpha, alpha);
}`;

export const FINISH_VERTEX = `
void main() {
  gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0);
}`;

// The background that the avatar was trained with, the color calibration of the two, and the background that is shown.
export const FINISH_FRAGMENT = `
precision highp sampler2D;

uniform sampler2D picture;
uniform vec3 own;
uniform vec3 background;
#if LAYERS > 0
uniform sampler2D network;  // one number per texel: of each layer its weights [out, in], then its biases [out]

float number(int at) {
  int width = textureSize(network, 0).x;
  return texelFetch(network, ivec2(at % width, at / width), 0).r;
}

vec3 calibrated(vec3 x) {
  float values[HIDDEN], next[HIDDEN];
  values[0] = x.r; values[1] = x.g; values[2] = x.b;
  int inputs = 3, start = 0;
  for (int layer = 0; layer < LAYERS; layer++) {
    int outputs = layer == LAYERS - 1 ? 3 : HIDDEN;
    int biases = start + inputs * outputs;
    for (int o = 0; o < outputs; o++) {
      float sum = number(biases + o);
      for (int i = 0; i < inputs; i++) sum += number(start + o * inputs + i) * values[i];
      next[o] = layer == LAYERS - 1 ? sum : max(sum, 0.0);
    }
    for (int o = 0; o < outputs; o++) values[o] = next[o];
    start = biases + outputs;
    inputs = outputs;
  }
  vec3 growth = exp(clamp(vec3(values[0], values[1], values[2]), -RESIDUAL_LIMIT, RESIDUAL_LIMIT));
  return x * growth / ((1.0 - x) + x * growth);
}
#endif
out vec4 result;

void main() {
  vec4 seen = texelFetch(picture, ivec2(gl_FragCoord.xy), 0);
  vec3 color = seen.rgb + (1.0 - seen.a) * own;
#if LAYERS > 0
  color = calibrated(clamp(color, 0.0, 1.0));
#endif
  result = vec4(color + (1.0 - seen.a) * (background - own), 1.0);
}`;
