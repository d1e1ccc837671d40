// The numbers that the kernels and their PyTorch twins share: `ops.kernels.CONSTANTS` reads them here, from
// lines of this one form.
#pragma once

namespace native {

constexpr int kLanes = 16;  // floats handled as one value: pixels, Gaussians or vertices

// The rig: below these a triangle has no orientation.
constexpr float kMinEdge = 1e-6f;  // metres
constexpr float kMinSine = 1e-6f;  // of the angle between two edges

// FLAME
constexpr int kMaxExpr = 4000;  // expression coefficients; the kernel keeps them in a fixed array

// SSIM, as Wang et al. 2004
constexpr int kWindowRadius = 5;      // pixels; an 11 x 11 window
constexpr double kWindowSigma = 1.5;  // pixels
constexpr float kSsimK1 = 0.01f;      // of the colors' range
constexpr float kSsimK2 = 0.03f;

// Visibility of triangles
constexpr double kMeshNear = 1e-3;     // metres; a triangle with a corner nearer than this, or behind, takes no part
constexpr double kFarAway = 1e6;       // cells; beyond it float positions say nothing
constexpr double kOverlap = 1e-4;      // cells; triangles grow by this, so that no ray slips between two neighbors
constexpr float kSameDepth = 1e-5f;    // relative; what is nearer by less does not hide

// Splatting, as Kerbl et al. 2023
constexpr float kNear = 0.2f;                    // metres
constexpr float kLowPass = 0.3f;                 // pixel^2, added to the projected covariance
constexpr float kGuard = 0.3f;                   // share of the half image added around the frustum
constexpr float kMaxAlpha = 0.99f;
constexpr float kMinAlpha = 0.00392156862745098f;  // 1/255
constexpr float kMinTransmittance = 1e-4f;
constexpr float kMinLength = 1e-12f;             // of a quaternion; float32 holds the squares of both
constexpr float kMaxLength = 1e18f;
constexpr int kTile = 16;                        // pixels; side of the squares that have a list of Gaussians each
constexpr float kMargin = 0.015625f;             // pixels, for rounding: a tile too many costs time, one too few the picture

// Real spherical harmonics: the factors of the basis functions, by degree
constexpr int kMaxDegree = 3;
constexpr float kHarmonic0 = 0.28209479177387814f;
constexpr float kHarmonic1 = 0.4886025119029199f;
constexpr float kHarmonic2Xy = 1.0925484305920792f;
constexpr float kHarmonic2Zz = 0.31539156525252005f;
constexpr float kHarmonic3Xxx = 0.5900435899266435f;
constexpr float kHarmonic3Xyz = 2.890611442640554f;
constexpr float kHarmonic3Xzz = 0.4570457994644658f;
constexpr float kHarmonic3Zzz = 0.3731763325901154f;
constexpr float kHarmonic3Xxz = 1.445305721320277f;

}  // namespace native
