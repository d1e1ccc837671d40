// Small linear algebra. A matrix is 9 numbers by rows; a quaternion is wxyz; angles are radians.

export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
export const scaled = (a, factor) => [a[0] * factor, a[1] * factor, a[2] * factor];
export const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
export const unit = (a) => scaled(a, 1 / Math.max(Math.hypot(...a), 1e-12));
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export const times = (m, v) => [
  m[0] * v[0] + m[1] * v[1] + m[2] * v[2],
  m[3] * v[0] + m[4] * v[1] + m[5] * v[2],
  m[6] * v[0] + m[7] * v[1] + m[8] * v[2],
];

export const transposed = (m) => [m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]];

export function product(a, b) {
  const out = new Array(9);
  for (let r = 0; r < 9; r += 3) {
    for (let c = 0; c < 3; c++) out[r + c] = a[r] * b[c] + a[r + 1] * b[c + 3] + a[r + 2] * b[c + 6];
  }
  return out;
}

/** Rodrigues' formula: the matrix of a rotation vector. */
export function rotationMatrix([x, y, z]) {
  const square = x * x + y * y + z * z;
  const angle = Math.sqrt(square);
  const s = square < 1e-12 ? 1 : Math.sin(angle) / angle;
  const c = square < 1e-12 ? 0.5 : (1 - Math.cos(angle)) / square;
  return [
    1 - c * (y * y + z * z), c * x * y - s * z, c * x * z + s * y,
    c * x * y + s * z, 1 - c * (x * x + z * z), c * y * z - s * x,
    c * x * z - s * y, c * y * z + s * x, 1 - c * (x * x + y * y),
  ];
}

/** The rotation vector that turns the z axis towards a direction, first up or down, then sideways; no roll. */
export function gazeVector([x, y, z]) {
  const yaw = Math.atan2(x, z);
  const pitch = -Math.atan2(y, Math.hypot(x, z));
  const [a, b] = [Math.cos(yaw / 2), Math.sin(yaw / 2)];
  const [c, d] = [Math.cos(pitch / 2), Math.sin(pitch / 2)];
  // the quaternion (a, 0, b, 0) (c, d, 0, 0)
  const axis = [a * d, b * c, -b * d];
  const sine = Math.hypot(...axis);
  return sine < 1e-9 ? [0, 0, 0] : scaled(axis, (2 * Math.atan2(sine, a * c)) / sine);
}
