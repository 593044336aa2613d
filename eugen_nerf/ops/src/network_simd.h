// Evaluation of a merged chain of EUGen and dense layers on a CPU, tile by tile. Computes the same as
// reference.network.
//
// Rows are processed TILE at a time, so that all activations of a tile stay in the nearest cache. The backward pass
// recomputes them, which takes a third of its time but avoids writing and reading every activation.
#pragma once
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "gemm_simd.h"
#include "phi.h"

namespace eugen {

// Allocates memory aligned to cache lines, because a vector that crosses two cache lines takes twice as long to load.
template <class T>
struct LineAllocator {
  typedef T value_type;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
typedef std::vector<float, LineAllocator<float>> Floats;

enum { TILE = 96 };  // a multiple of the rows of every block in gemm_simd.h

struct Stage {
  int in, features, order;
  bool shared, has_offsets, has_norm;
  int norm_rows;  // r if the norm is that of the r values R x + c, 0 if it is that of the input x
  Phi phi;
  float eps;

  int projections() const { return shared ? order : order * (order + 1) / 2; }
  int columns() const { return in + (has_norm ? 1 : 0); }  // the norm is one more input
  int projected() const { return projections() * features; }
  int out() const { return order * features; }
};

// The parameters of one affine map, in the two layouts that the matrix products need.
struct Matrix {
  int rows, columns;                // out, in
  Floats by_input;      // [columns, padded(rows)]: x -> y
  Floats by_output;     // [rows, padded(columns)]: dy -> dx
  Floats offsets;       // [padded(rows)], zero if there are none

  void pack(const float* source, const float* last_column, const float* bias, int n, int k) {
    rows = n;
    columns = k + (last_column ? 1 : 0);
    by_input.assign(size_t(columns) * padded(n), 0.f);
    by_output.assign(size_t(n) * padded(columns), 0.f);
    offsets.assign(padded(n), 0.f);
    for (int r = 0; r < n; r++) {
      for (int c = 0; c < columns; c++) {
        const float value = c < k ? source[size_t(r) * k + c] : last_column[r];
        by_input[size_t(c) * padded(n) + r] = value;
        by_output[size_t(r) * padded(columns) + c] = value;
      }
      if (bias) offsets[r] = bias[r];
    }
  }
};

struct Network {
  std::vector<Stage> stages;
  std::vector<Matrix> matrices;  // one for each stage, then the output's
  std::vector<Matrix> forms;     // R and c of each stage; without rows if it has none
  int out;
  bool has_bias;

  // spec: packing.PackedChain.spec.
  Network(const int64* spec, const float* eps, const float* parameters) {
    const int count = int(*spec++);
    stages.resize(count);
    matrices.resize(count + 1);
    forms.resize(count);
    const float* p = parameters;
    int width = 0;
    for (int i = 0; i < count; i++, spec += 7) {
      Stage& s = stages[i];
      s = Stage{int(spec[0]),
                int(spec[1]),
                int(spec[2]),
                spec[3] != 0,
                spec[5] != 0,
                spec[6] != 0,
                spec[6] > 1 ? int(spec[6]) - 1 : 0,
                Phi(spec[4]),
                eps[i]};
      const float* weights = p;
      p += size_t(s.projected()) * s.in;
      const float* offsets = s.has_offsets ? p : nullptr;
      p += s.has_offsets ? s.projected() : 0;
      const float* norm = s.has_norm ? p : nullptr;
      p += s.has_norm ? s.projected() : 0;
      matrices[i].pack(weights, norm, offsets, s.projected(), s.in);
      forms[i].pack(p, nullptr, p + size_t(s.norm_rows) * s.in, s.norm_rows, s.in);
      p += size_t(s.norm_rows) * (s.in + 1);
      width = s.out();
    }
    if (count == 0) width = int(spec[2]);
    out = int(spec[0]);
    has_bias = spec[1] != 0;
    matrices[count].pack(p, nullptr, has_bias ? p + size_t(out) * width : nullptr, out, width);
  }

  int in() const { return stages.empty() ? matrices[0].columns : stages[0].in; }
};

// Activations and gradients of one tile. Each thread has its own.
struct Scratch {
  std::vector<Floats> input;      // of each matrix [TILE, padded(columns)], the norm in its column
  std::vector<Floats> projected;  // of each stage [TILE, padded(projected)], before products and phi
  std::vector<Floats> normed;     // of each stage [TILE, padded(norm_rows)], the values whose norm it takes
  Floats output;                  // [TILE, padded(out)]
  const float* first;                         // input of the first matrix: input[0], or the caller's rows
  Floats grad, grad_projected;    // as wide as the widest of the above

  explicit Scratch(const Network& net) : first(nullptr) {
    int widest = 0;
    for (const Matrix& m : net.matrices) {
      input.emplace_back(size_t(TILE) * padded(m.columns), 0.f);
      widest = widest > padded(m.columns) ? widest : padded(m.columns);
      widest = widest > padded(m.rows) ? widest : padded(m.rows);
    }
    for (const Stage& s : net.stages) {
      projected.emplace_back(size_t(TILE) * padded(s.projected()), 0.f);
      normed.emplace_back(size_t(TILE) * padded(s.norm_rows), 0.f);
    }
    output.assign(size_t(TILE) * padded(net.out), 0.f);
    grad.assign(size_t(TILE) * widest, 0.f);
    grad_projected.assign(size_t(TILE) * widest, 0.f);
  }
};

// Features of a row of projections u: phi(u_1) for order 1; order 2 appends phi(u_2 u_3), or phi(u_1 u_2) if shared.
template <Phi PHI>
static void make_features(const Stage& s, const float* u, float* f) {
  const int m = s.features;
  for (int j = 0; j < m; j++) f[j] = apply(PHI, u[j]);
  if (s.order == 2) {
    const float *a = s.shared ? u : u + m, *b = a + m;
    for (int j = 0; j < m; j++) f[m + j] = apply(PHI, a[j] * b[j]);
  }
}

// Gradient of make_features, from df to du.
template <Phi PHI>
static void features_backward(const Stage& s, const float* u, const float* df, float* du) {
  const int m = s.features;
  for (int j = 0; j < m; j++) du[j] = df[j] * slope(PHI, u[j]);
  if (s.order == 2) {
    const float *a = s.shared ? u : u + m, *b = a + m;
    float *da = s.shared ? du : du + m, *db = da + m;
    for (int j = 0; j < m; j++) {
      const float g = df[m + j] * slope(PHI, a[j] * b[j]);
      da[j] = (s.shared ? da[j] : 0.f) + g * b[j];
      db[j] = g * a[j];
    }
  }
}

#define EUGEN_FOR_PHI(phi, CALL)                              \
  switch (phi) {                                              \
    case RELU_PHI: CALL(RELU_PHI); break;                     \
    case SQUARED_RELU_PHI: CALL(SQUARED_RELU_PHI); break;     \
    case SOFTPLUS_PHI: CALL(SOFTPLUS_PHI); break;             \
    case GELU_PHI: CALL(GELU_PHI); break;                     \
    case SINE_PHI: CALL(SINE_PHI); break;                     \
    default: CALL(IDENTITY_PHI); break;                       \
  }

static inline float row_norm(const float* row, int n, float eps) {
  float sum = 0;
  for (int i = 0; i < n; i++) sum += row[i] * row[i];
  return sqrtf(sum + eps);
}

// x [rows, in] -> out [rows, padded(out)]. Keeps all activations. The last product is skipped if out is null.
static inline void tile_forward(const Network& net, Scratch& t, const float* x, int rows, float* out) {
  const int stages = int(net.stages.size());
  const int ld0 = padded(net.matrices[0].columns);
  // Rows that are a whole number of vectors and need no norm column are read in place.
  if (ld0 == net.in())
    t.first = x;
  else {
    t.first = t.input[0].data();
    for (int r = 0; r < rows; r++)
      memcpy(&t.input[0][size_t(r) * ld0], x + size_t(r) * net.in(), sizeof(float) * net.in());
  }
  for (int i = 0; i <= stages; i++) {
    const Matrix& matrix = net.matrices[i];
    const int ld = padded(matrix.columns), ldo = padded(matrix.rows);
    const float* in = i ? t.input[i].data() : t.first;
    if (i == stages) {
      if (out)
        gemm(out, ldo, Strided{in, ld, 1}, matrix.by_input.data(), ldo, rows, ldo, matrix.columns, ROW,
             matrix.offsets.data());
      return;
    }
    const Stage& s = net.stages[i];
    if (s.has_norm) {
      const float* of = in;
      int length = s.in, ldn = ld;
      if (s.norm_rows) {
        const Matrix& form = net.forms[i];
        length = s.norm_rows, ldn = padded(length);
        gemm(t.normed[i].data(), ldn, Strided{in, ld, 1}, form.by_input.data(), ldn, rows, ldn, s.in, ROW,
             form.offsets.data());
        of = t.normed[i].data();
      }
      for (int r = 0; r < rows; r++) t.input[i][size_t(r) * ld + s.in] = row_norm(of + r * ldn, length, s.eps);
    }
    float *u = t.projected[i].data(), *f = t.input[i + 1].data();
    const int ldf = padded(net.matrices[i + 1].columns);
    if (s.order == 1 && s.phi == RELU_PHI && ldo == ldf) {
      // The common case needs no second pass, because the slope can be read off the features.
      gemm(f, ldf, Strided{in, ld, 1}, matrix.by_input.data(), ldo, rows, ldo, matrix.columns, ROW,
           matrix.offsets.data(), RELU);
      continue;
    }
    gemm(u, ldo, Strided{in, ld, 1}, matrix.by_input.data(), ldo, rows, ldo, matrix.columns, ROW,
         matrix.offsets.data());
#define EUGEN_CALL(PHI) \
  for (int r = 0; r < rows; r++) make_features<PHI>(s, u + r * ldo, f + r * ldf)
    EUGEN_FOR_PHI(s.phi, EUGEN_CALL)
#undef EUGEN_CALL
  }
}

// One thread's sums of parameter gradients.
struct MatrixGradient {
  Floats weights;  // like by_output
  Floats offsets;  // [padded(rows)]

  explicit MatrixGradient(const Matrix& m)
      : weights(size_t(m.rows) * padded(m.columns), 0.f), offsets(padded(m.rows), 0.f) {}

  // Adds the gradients of y = matrix x, for the given number of rows of x [rows, ld] and dy [rows, ldy].
  void add(const Matrix& m, const float* x, int ld, const float* dy, int ldy, int rows) {
    const int columns = padded(m.columns);
    gemm(weights.data(), columns, Strided{dy, 1, ldy}, x, ld, m.rows, columns, rows, ACCUMULATE);
    for (size_t c = 0; c < offsets.size(); c += LANES) {
      Vector sum = load(&offsets[c]);
      for (int r = 0; r < rows; r++) sum += load(dy + r * ldy + c);
      store(&offsets[c], sum);
    }
  }
};

struct Gradients {
  std::vector<MatrixGradient> matrices, forms;

  explicit Gradients(const Network& net)
      : matrices(net.matrices.begin(), net.matrices.end()), forms(net.forms.begin(), net.forms.end()) {}
};

// Adds the norm's contribution to the gradient din [rows, ld] of the inputs of stage i, whose norm column contains the
// gradient of the norm itself. Also adds to the gradients of R and c.
static inline void norm_backward(const Network& net, Scratch& t, Gradients& sums, int i, int rows, float* din, int ld) {
  const Stage& s = net.stages[i];
  const float* in = i ? t.input[i].data() : t.first;
  const int n = s.in;
  if (!s.norm_rows) {
    for (int r = 0; r < rows; r++) {
      const float factor = din[r * ld + n] / in[r * ld + n];
      for (int c = 0; c < n; c++) din[r * ld + c] += factor * in[r * ld + c];
    }
    return;
  }
  const Matrix& form = net.forms[i];
  const int ldv = padded(s.norm_rows), width = padded(n);
  float* v = t.normed[i].data();
  for (int r = 0; r < rows; r++) {
    const float factor = din[r * ld + n] / in[r * ld + n];
    for (int c = 0; c < s.norm_rows; c++) v[r * ldv + c] *= factor;  // v becomes its own gradient
  }
  sums.forms[i].add(form, in, ld, v, ldv, rows);
  gemm(din, ld, Strided{v, ldv, 1}, form.by_output.data(), width, rows, width, s.norm_rows, ACCUMULATE);
}

// After tile_forward on the same rows: adds to the gradients and writes dx [rows, in] (stride lddx) unless it is null.
static inline void tile_backward(const Network& net, Scratch& t, Gradients& sums, const float* grad_out, int64 ldg,
                                 int rows, float* dx, int64 lddx) {
  const int stages = int(net.stages.size());
  float *other = t.grad.data(), *spare = t.grad_projected.data();
  const float* dy = grad_out;  // gradient of a matrix's output
  int ldy = int(ldg);
  if (ldg != padded(net.out)) {
    ldy = padded(net.out);
    for (int r = 0; r < rows; r++) {
      memcpy(other + r * ldy, grad_out + r * ldg, sizeof(float) * net.out);
      for (int c = net.out; c < ldy; c++) other[r * ldy + c] = 0;
    }
    dy = other;
    std::swap(other, spare);
  }
  for (int i = stages; i >= 0; i--) {
    const Matrix& matrix = net.matrices[i];
    const int ld = padded(matrix.columns);
    const float* in = i ? t.input[i].data() : t.first;
    sums.matrices[i].add(matrix, in, ld, dy, ldy, rows);
    const bool has_norm = i < stages && net.stages[i].has_norm;
    if (i == 0 && !dx && !(has_norm && net.stages[0].norm_rows)) return;
    const Strided grad{dy, ldy, 1};
    if (i == 0 && !has_norm && lddx == ld) {
      gemm(dx, ld, grad, matrix.by_output.data(), ld, rows, ld, matrix.rows, ZERO);
      return;
    }
    // The gradient of a ReLU between two matrices is a mask that can be read off its features.
    const bool masked = i > 0 && net.stages[i - 1].order == 1 && net.stages[i - 1].phi == RELU_PHI &&
                        padded(net.stages[i - 1].projected()) == ld;
    const bool at_once = masked && !has_norm;
    float* din = other;
    gemm(din, ld, grad, matrix.by_output.data(), ld, rows, ld, matrix.rows, ZERO, nullptr,
         at_once ? WHERE_POSITIVE : PLAIN, at_once ? in : nullptr);
    if (has_norm) norm_backward(net, t, sums, i, rows, din, ld);
    if (i == 0) {
      for (int r = 0; dx && r < rows; r++) memcpy(dx + r * lddx, din + r * ld, sizeof(float) * net.in());
      return;
    }
    ldy = ld;
    if (masked) {
      if (has_norm) {
        for (int j = 0; j < rows * ld; j++) din[j] = in[j] <= 0.f ? 0.f : din[j];
        for (int r = 0; r < rows; r++) din[r * ld + net.stages[i].in] = 0;  // the norm is not a feature
      }
      dy = din;
      std::swap(other, spare);
      continue;
    }
    const Stage& s = net.stages[i - 1];
    ldy = padded(s.projected());
    const float* u = t.projected[i - 1].data();
#define EUGEN_CALL(PHI)                                                   \
  for (int r = 0; r < rows; r++) {                                        \
    features_backward<PHI>(s, u + r * ldy, din + r * ld, spare + r * ldy); \
    for (int c = s.projected(); c < ldy; c++) spare[r * ldy + c] = 0;     \
  }
    EUGEN_FOR_PHI(s.phi, EUGEN_CALL)
#undef EUGEN_CALL
    dy = spare;
  }
}

}  // namespace eugen
