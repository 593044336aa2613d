// Entry points of the CPU runners: a plain C interface that cpu.py calls through ctypes.
//
// All arrays are contiguous. Work is divided among threads into ranges that depend only on the number of threads, and
// the sums of different threads are added in a fixed order, so equal inputs and thread counts give bit-identical
// results.
#include "adam.h"
#include "composite.h"
#include "harmonics.h"
#include "hashgrid.h"
#include "march_simd.h"
#include "network_simd.h"
#include "parallel.h"
#include "products.h"

using namespace eugen;

namespace {

std::vector<HashLevel> make_levels(const int64* resolutions, const int64* offsets, int levels, int log2_table_size) {
  std::vector<HashLevel> out(levels);
  for (int l = 0; l < levels; l++) {
    const int64 side = resolutions[l] + 1;
    const bool dense = side * side * side <= int64(1) << log2_table_size;
    out[l] = HashLevel{int(resolutions[l]), (uint32(1) << log2_table_size) - 1, uint32(offsets[l]), dense};
  }
  return out;
}

// Number of positions that are located together, in vector registers and ahead of the first use of their table rows, so
// that prefetched memory arrives in time.
enum { AHEAD = 32 };

struct CellBlock {
  uint32 rows[8][AHEAD];
  float weights[8][AHEAD];
};

template <bool DENSE>
void locate(const float* x, HashLevel level, int count, CellBlock& block) {
  level.dense = DENSE;  // a compile-time constant, so that there is no branch per position
#pragma omp simd
  for (int j = 0; j < count; j++) {
    const HashCell cell = hash_cell(load3(x + 3 * j), level);
    float weights[8];
    corner_weights(cell, weights);
    for (int c = 0; c < 8; c++) {
      block.rows[c][j] = cell.rows[c];
      block.weights[c][j] = weights[c];
    }
  }
}

template <int F>
void locate(const float* x, const float* table, const HashLevel& level, int count, CellBlock& block) {
  if (level.dense)
    locate<true>(x, level, count, block);
  else
    locate<false>(x, level, count, block);
  for (int c = 0; c < 8; c++)
    for (int j = 0; j < count; j++) __builtin_prefetch(table + size_t(block.rows[c][j]) * F);
}

template <int F>
void encode_level(const float* x, const float* table, const HashLevel& level, int64 n, float* out, int64 stride) {
  CellBlock block;
  for (int64 begin = 0; begin < n; begin += AHEAD) {
    const int count = int(std::min<int64>(AHEAD, n - begin));
    locate<F>(x + 3 * begin, table, level, count, block);
    for (int j = 0; j < count; j++) {
      float sum[F] = {};
      for (int c = 0; c < 8; c++) {
        const float* row = table + size_t(block.rows[c][j]) * F;
        for (int f = 0; f < F; f++) sum[f] += block.weights[c][j] * row[f];
      }
      for (int f = 0; f < F; f++) out[(begin + j) * stride + f] = sum[f];
    }
  }
}

template <int F>
void scatter_level(const float* x, const HashLevel& level, int64 n, const float* grad, int64 stride, uint32 part,
                   uint32 parts, float* grad_table) {
  CellBlock block;
  for (int64 begin = 0; begin < n; begin += AHEAD) {
    const int count = int(std::min<int64>(AHEAD, n - begin));
    locate<F>(x + 3 * begin, grad_table, level, count, block);
    for (int j = 0; j < count; j++) {
      const float* g = grad + (begin + j) * stride;
      for (int c = 0; c < 8; c++) {
        const uint32 row = block.rows[c][j];
        if (parts > 1 && (row >> 4) % parts != part) continue;
        for (int f = 0; f < F; f++) grad_table[size_t(row) * F + f] += block.weights[c][j] * g[f];
      }
    }
  }
}

template <int F>
void position_gradient(const float* x, const float* table, const std::vector<HashLevel>& levels, int64 begin, int64 end,
                       const float* grad, float* grad_x) {
  const int64 stride = int64(levels.size()) * F;
  for (int64 n = begin; n < end; n++) {
    float total[3] = {0, 0, 0};
    for (size_t l = 0; l < levels.size(); l++) {
      const HashCell cell = hash_cell(load3(x + 3 * n), levels[l]);
      const float* g = grad + n * stride + l * F;
      for (int c = 0; c < 8; c++) {
        float dot = 0;
        for (int f = 0; f < F; f++) dot += g[f] * table[size_t(cell.rows[c]) * F + f];
        for (int a = 0; a < 3; a++) total[a] += dot * corner_slope(cell, c, a) * float(levels[l].resolution);
      }
    }
    // Clamped positions have no gradient. Like PyTorch, this includes positions on the faces of the cube.
    for (int a = 0; a < 3; a++) grad_x[3 * n + a] = x[3 * n + a] > 0.f && x[3 * n + a] < 1.f ? total[a] : 0.f;
  }
}

// The numbers of features per vertex for which code is compiled.
#define EUGEN_FOR_FEATURES(F, CALL) \
  switch (F) {                      \
    case 1: CALL(1); break;         \
    case 2: CALL(2); break;         \
    case 4: CALL(4); break;         \
    case 8: CALL(8); break;         \
    default: return 1;              \
  }

// Scans an occupancy grid once, so that ray marching can skip empty space in long strides.
std::vector<uint8> survey(March& m, int threads) {
  if (together(m)) return {};  // nothing is crossed at once there
  const int64 r = m.resolution, side = blocks_along_axis(m.resolution), bytes = r * r * r / 8;
  std::vector<uint8> blocks(side * side * side, 0);
  in_ranges(threads, side, [&](int64 begin, int64 end, int) {
    for (int64 z = begin * BLOCK; z < std::min(r, end * BLOCK); z++)
      for (int64 y = 0; y < r; y++)
        for (int64 x = 0; x < r; x += BLOCK) {
          const int64 bit = (z * r + y) * r + x, byte = bit >> 3;
          const unsigned next = byte + 1 < bytes ? m.bits[byte + 1] : 0;
          const unsigned mask = (1u << std::min<int64>(BLOCK, r - x)) - 1;
          if ((m.bits[byte] | next << 8) >> (bit & 7) & mask)
            blocks[(z / BLOCK * side + y / BLOCK) * side + x / BLOCK] = 1;
        }
  });
  int64 low[3] = {side, side, side}, high[3] = {0, 0, 0};
  for (int64 b = 0; b < int64(blocks.size()); b++)
    if (blocks[b]) {
      const int64 at[3] = {b % side, b / side % side, b / (side * side)};
      for (int a = 0; a < 3; a++) {
        low[a] = std::min(low[a], at[a]);
        high[a] = std::max(high[a], at[a] + 1);
      }
    }
  for (int a = 0; a < 3; a++) {
    const float cell = (m.high[a] - m.low[a]) / float(r);
    m.occupied_low[a] = m.low[a] + cell * float(BLOCK * low[a]);
    m.occupied_high[a] = minimum(m.high[a], m.low[a] + cell * float(BLOCK * high[a]));
  }
  m.blocks = blocks.data();
  return blocks;
}

// The complete field: hash grid, density network and color network.
struct Field {
  const float* table;
  std::vector<HashLevel> levels;
  int features;
  Network density, color;
};

// The state of a ray while it is rendered.
struct RayState {
  Walk walk;
  Checked ahead;
  float harmonics[16];
  float total[5];  // rgb, alpha, depth
  double optical;
  int samples;
  int64 index;
};

// Renders rays on one thread, a tile of them at a time. Each round takes the next sample of every active ray, so that a
// round fills the networks' tile and a ray stops at the sample that makes it opaque.
template <int F>
void render_rays(const Field& field, const March& m, const float* origins, const float* directions, const float* near,
                 const float* far, int64 begin, int64 end, float min_transmittance, float* out, int64* samples) {
  Scratch density(field.density), color(field.color);
  const int encoded = field.density.in(), geometry = field.density.out - 1, color_in = field.color.in();
  const int ld_density = padded(field.density.out), ld_color = padded(field.color.out);
  Floats unit(3 * TILE), features(size_t(TILE) * encoded), color_input(size_t(TILE) * color_in);
  std::vector<RayState> rays(TILE);
  std::vector<Step> steps(TILE);
  const float opaque = -log(maximum(min_transmittance, 1e-30f));
  int active = 0;
  int64 next = begin;
  while (true) {
    // Take the next sample of each ray; new rays replace finished ones.
    int i = 0;
    while (i < active || (active < TILE && next < end)) {
      if (i == active) {
        RayState& ray = rays[active++];
        const Vec3 direction = load3(directions + 3 * next);
        ray = RayState{};
        ray.walk = begin_walk(m, load3(origins + 3 * next), direction, near[next], far[next], 0.5f);
        ray.index = next;
        spherical_harmonics(direction, ray.harmonics);
        next++;
      }
      if (rays[i].optical <= opaque && next_sample(m, rays[i].walk, rays[i].ahead, steps[i])) {
        i++;
        continue;
      }
      memcpy(out + 5 * rays[i].index, rays[i].total, sizeof(rays[i].total));
      samples[rays[i].index] = rays[i].samples;
      rays[i] = rays[--active];
    }
    if (active == 0) return;
    for (int r = 0; r < active; r++) memcpy(&unit[3 * r], &steps[r].unit, sizeof(Vec3));
    for (size_t l = 0; l < field.levels.size(); l++)
      encode_level<F>(unit.data(), field.table, field.levels[l], active, &features[l * F], encoded);
    tile_forward(field.density, density, features.data(), active, density.output.data());
    for (int r = 0; r < active; r++) {
      float* in = &color_input[size_t(r) * color_in];
      memcpy(in, rays[r].harmonics, sizeof(rays[r].harmonics));
      memcpy(in + 16, &density.output[size_t(r) * ld_density + 1], sizeof(float) * geometry);
    }
    tile_forward(field.color, color, color_input.data(), active, color.output.data());
    for (int r = 0; r < active; r++) {
      RayState& ray = rays[r];
      const float sigma = exp(minimum(80.f, density.output[size_t(r) * ld_density]));
      const float thickness = sigma * (steps[r].t_end - steps[r].t_start);
      const float weight = float(exp(-ray.optical)) * -expm1f(-thickness);
      const float* raw = &color.output[size_t(r) * ld_color];
      for (int c = 0; c < 3; c++) ray.total[c] += weight / (1 + exp(-raw[c]));
      ray.total[3] += weight;
      ray.total[4] += weight * 0.5f * (steps[r].t_start + steps[r].t_end);
      ray.optical += thickness;
      ray.samples++;
    }
  }
}

void adam_range(const AdamStep& step, int64 n, const float* __restrict grad, float* __restrict parameter,
                float* __restrict first, float* __restrict second) {
#pragma omp simd
  for (int64 i = 0; i < n; i++) adam_update(step, grad[i] != 0.f, grad[i], parameter[i], first[i], second[i]);
}

// Prefetch memory that the next tile will read, so that it has arrived when this one is done.
void prefetch(const float* begin, const float* end) {
  for (const float* p = begin; p < end; p += 16) __builtin_prefetch(p);
}

// sum += a * row
void add_row(int n, float a, const float* __restrict__ row, float* __restrict__ sum) {
  for (int j = 0; j < n; j++) sum[j] += a * row[j];
}

float dot(int n, const float* a, const float* b) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int j = 0; j < n; j++) sum += a[j] * b[j];
  return sum;
}

void multiply(const Product& p, const float* const* factors, float* out) {
  const float* right = factors[p.right];
  if (p.left < 0) {
    std::copy_n(right, p.rows * p.columns, out);
    return;
  }
  for (int i = 0; i < p.rows; i++) {
    const float* left = factors[p.left] + i * p.inner;
    float* row = out + i * p.columns;
    if (p.columns == 1) {
      *row = dot(p.inner, left, right) + (p.constant < 0 ? 0.f : factors[p.constant][i]);
      continue;
    }
    std::fill_n(row, p.columns, 0.f);
    for (int k = 0; k < p.inner; k++) add_row(p.columns, left[k], right + k * p.columns, row);
  }
}

void clear_gradients(const Product& p, float* const* grads) {
  const auto clear = [&](int factor, int size) {
    if (factor >= 0 && grads[factor]) std::fill_n(grads[factor], size, 0.f);
  };
  clear(p.left, p.rows * p.inner);
  clear(p.right, (p.left < 0 ? p.rows : p.inner) * p.columns);
  clear(p.constant, p.rows);
}

void add_gradients(const Product& p, const float* const* factors, const float* grad, float* const* grads) {
  float* of_right = grads[p.right];
  if (p.left < 0) {
    if (of_right) add_row(p.rows * p.columns, 1.f, grad, of_right);
    return;
  }
  float* of_left = grads[p.left];
  const float* right = factors[p.right];
  for (int i = 0; i < p.rows; i++) {
    const float* left = factors[p.left] + i * p.inner;
    const float* row = grad + i * p.columns;
    if (p.columns == 1) {
      if (of_left) add_row(p.inner, *row, right, of_left + i * p.inner);
      if (of_right) add_row(p.inner, *row, left, of_right);
      continue;
    }
    for (int k = 0; k < p.inner; k++) {
      if (of_left) of_left[i * p.inner + k] += dot(p.columns, row, right + k * p.columns);
      if (of_right) add_row(p.columns, left[k], row, of_right + k * p.columns);
    }
  }
  if (p.constant >= 0 && grads[p.constant]) add_row(p.rows, 1.f, grad, grads[p.constant]);
}

}  // namespace

extern "C" {

// Functions that return int return 0 on success, or 1 if there is no code for the arguments.

int eugen_lanes() { return LANES; }

// Set the OpenMP functions used by all later calls. Without them everything runs on the calling thread.
void eugen_use_openmp(decltype(OpenMP::parallel) parallel, decltype(OpenMP::thread) thread,
                      decltype(OpenMP::threads) threads) {
  openmp = OpenMP{parallel, thread, threads};
}

int eugen_hash_encode_forward(const float* x, const float* table, const int64* resolutions, const int64* offsets,
                              int levels, int features, int log2_table_size, int64 n, float* out, int threads) {
  const std::vector<HashLevel> level = make_levels(resolutions, offsets, levels, log2_table_size);
  const int64 stride = int64(levels) * features;
  // Level by level over a chunk, so that a level's rows stay in the cache while the chunk's positions read them.
  const int64 chunk = 2048, chunks = (n + chunk - 1) / chunk;
#define EUGEN_CALL(F)                                                                                 \
  in_ranges(threads, chunks, [&](int64 first, int64 last, int) {                                      \
    for (int64 k = first; k < last; k++) {                                                            \
      const int64 begin = k * chunk, count = std::min(chunk, n - begin);                              \
      for (int l = 0; l < levels; l++)                                                                \
        encode_level<F>(x + 3 * begin, table, level[l], count, out + begin * stride + l * F, stride); \
    }                                                                                                 \
  })
  EUGEN_FOR_FEATURES(features, EUGEN_CALL)
#undef EUGEN_CALL
  return 0;
}

// Adds to grad_table [entries, features]; writes grad_x [n, 3] unless it is null.
int eugen_hash_encode_backward(const float* x, const float* table, const int64* resolutions, const int64* offsets,
                               int levels, int features, int log2_table_size, int64 n, const float* grad,
                               float* grad_table, float* grad_x, int threads) {
  const std::vector<HashLevel> level = make_levels(resolutions, offsets, levels, log2_table_size);
  const int64 stride = int64(levels) * features;
  // Each task owns the rows it adds to and adds in the order of the samples. This needs no atomics and gives the same
  // sums for any number of threads. With more threads than levels, the rows of a level are divided among several tasks.
  const int parts = (threads + levels - 1) / levels, tasks = levels * parts;
#define EUGEN_CALL(F)                                                                                       \
  if (grad_table) {                                                                                         \
    as_they_come(threads, tasks, 1, [&](int64 k) {                                                          \
      const int64 l = levels - 1 - k / parts;                                                               \
      scatter_level<F>(x, level[l], n, grad + l * F, stride, uint32(k % parts), uint32(parts), grad_table); \
    });                                                                                                     \
  }                                                                                                         \
  if (grad_x) {                                                                                             \
    in_ranges(threads, n, [&](int64 begin, int64 end, int) {                                                \
      position_gradient<F>(x, table, level, begin, end, grad, grad_x);                                      \
    });                                                                                                     \
  }
  EUGEN_FOR_FEATURES(features, EUGEN_CALL)
#undef EUGEN_CALL
  return 0;
}

int eugen_spherical_harmonics(const float* directions, int64 n, float* out, int threads) {
  in_ranges(threads, n, [&](int64 begin, int64 end, int) {
    for (int64 i = begin; i < end; i++) spherical_harmonics(load3(directions + 3 * i), out + 16 * i);
  });
  return 0;
}

int eugen_network_forward(const float* x, const float* parameters, const int64* spec, const float* eps, int64 n,
                          float* out, int threads) {
  const Network net(spec, eps, parameters);
  const int in = net.in(), ld = padded(net.out);
  in_ranges(threads, (n + TILE - 1) / TILE, [&](int64 first, int64 last, int) {
    Scratch scratch(net);
    for (int64 begin = first * TILE; begin < std::min(n, last * TILE); begin += TILE) {
      const int rows = int(std::min<int64>(TILE, n - begin));
      prefetch(x + (begin + rows) * in, x + std::min(n, begin + 2 * TILE) * in);
      if (ld == net.out) {
        tile_forward(net, scratch, x + begin * in, rows, out + begin * ld);
        continue;
      }
      tile_forward(net, scratch, x + begin * in, rows, scratch.output.data());
      for (int r = 0; r < rows; r++)
        memcpy(out + (begin + r) * net.out, &scratch.output[size_t(r) * ld], sizeof(float) * net.out);
    }
  });
  return 0;
}

// Writes grad_parameters (in packed order), and grad_x [n, in] unless it is null.
int eugen_network_backward(const float* x, const float* parameters, const int64* spec, const float* eps, int64 n,
                           const float* grad_out, float* grad_x, float* grad_parameters, int threads) {
  const Network net(spec, eps, parameters);
  const int in = net.in();
  std::vector<Gradients> sums(threads, Gradients(net));
  in_ranges(threads, (n + TILE - 1) / TILE, [&](int64 first, int64 last, int thread) {
    Scratch scratch(net);
    Gradients& mine = sums[thread];
    for (int64 begin = first * TILE; begin < std::min(n, last * TILE); begin += TILE) {
      const int rows = int(std::min<int64>(TILE, n - begin));
      prefetch(x + (begin + rows) * in, x + std::min(n, begin + 2 * TILE) * in);
      prefetch(grad_out + (begin + rows) * net.out, grad_out + std::min(n, begin + 2 * TILE) * net.out);
      tile_forward(net, scratch, x + begin * in, rows, nullptr);
      tile_backward(net, scratch, mine, grad_out + begin * net.out, net.out, rows,
                    grad_x ? grad_x + begin * in : nullptr, in);
    }
  });
  float* p = grad_parameters;
  // `of` selects a matrix's gradient from a thread's sums.
  const auto write_block = [&](const auto& of, int ld, int rows, int begin, int end) {
    for (int r = 0; r < rows; r++)
      for (int c = begin; c < end; c++, p++) {
        *p = 0;
        for (const Gradients& g : sums) *p += of(g).weights[size_t(r) * ld + c];
      }
  };
  const auto write_offsets = [&](const auto& of, int rows) {
    for (int r = 0; r < rows; r++, p++) {
      *p = 0;
      for (const Gradients& g : sums) *p += of(g).offsets[r];
    }
  };
  const int stages = int(net.stages.size());
  for (int i = 0; i <= stages; i++) {
    const Matrix& m = net.matrices[i];
    const auto matrix = [i](const Gradients& g) -> const MatrixGradient& { return g.matrices[i]; };
    const auto form = [i](const Gradients& g) -> const MatrixGradient& { return g.forms[i]; };
    const bool has_norm = i < stages && net.stages[i].has_norm;
    const int plain = m.columns - (has_norm ? 1 : 0), ld = padded(m.columns);
    write_block(matrix, ld, m.rows, 0, plain);
    if (i < stages ? net.stages[i].has_offsets : net.has_bias) write_offsets(matrix, m.rows);
    if (has_norm) {
      write_block(matrix, ld, m.rows, plain, m.columns);
      write_block(form, padded(plain), net.forms[i].rows, 0, plain);
      write_offsets(form, net.forms[i].rows);
    }
  }
  return 0;
}

// Samples of consecutive rays.
struct Samples {
  std::vector<float> start, end;
};

// Returns a handle for eugen_march_take and writes the number of samples of each ray. near, far, jitter [rays].
void* eugen_march(const float* origins, const float* directions, const float* near, const float* far,
                  const float* jitter, int64 rays, const uint8* bits, int resolution, const float* box, int contracted,
                  const float* rule, int64* counts, int threads) {
  March m = make_march(box, contracted, rule, resolution, bits);
  const std::vector<uint8> blocks = survey(m, threads);
  const int64 chunk = 64, chunks = (rays + chunk - 1) / chunk;
  auto* found = new std::vector<Samples>(chunks);
  as_they_come(threads, chunks, 1, [&](int64 k) {
    Samples samples;  // of its own, because neighbors in *found share cache lines with other threads
    for (int64 r = k * chunk; r < std::min(rays, (k + 1) * chunk); r++) {
      Walk walk = begin_walk(m, load3(origins + 3 * r), load3(directions + 3 * r), near[r], far[r], jitter[r]);
      Checked ahead{};
      Step step;
      const size_t before = samples.start.size();
      while (next_sample(m, walk, ahead, step)) {
        samples.start.push_back(step.t_start);
        samples.end.push_back(step.t_end);
      }
      counts[r] = int64(samples.start.size() - before);
    }
    (*found)[k] = std::move(samples);
  });
  return found;
}

// Copies the samples of all rays, one after the other, and releases the handle.
void eugen_march_take(void* handle, float* t_start, float* t_end) {
  auto* found = static_cast<std::vector<Samples>*>(handle);
  for (const Samples& samples : *found) {
    t_start = std::copy(samples.start.begin(), samples.start.end(), t_start);
    t_end = std::copy(samples.end.begin(), samples.end.end(), t_end);
  }
  delete found;
}

// Where the field is evaluated: positions in the unit cube, unit [N, 3], and directions, view [N, 3].
int eugen_sample_points(const float* origins, const float* directions, int64 rays, const int64* offsets,
                        const float* t_start, const float* t_end, const float* box, int contracted, float* unit,
                        float* view, int threads) {
  const float rule[2] = {1, 0};  // positions do not depend on the step rule
  const March m = make_march(box, contracted, rule, 2, nullptr);
  as_they_come(threads, rays, 64, [&](int64 r) {
    const Vec3 o = load3(origins + 3 * r), d = load3(directions + 3 * r);
    for (int64 i = offsets[r]; i < offsets[r + 1]; i++) {
      const float t = 0.5f * (t_start[i] + t_end[i]);
      const Vec3 u = to_unit(m, Vec3{o.x + d.x * t, o.y + d.y * t, o.z + d.z * t});
      const float row[6] = {u.x, u.y, u.z, d.x, d.y, d.z};
      memcpy(unit + 3 * i, row, 3 * sizeof(float));
      memcpy(view + 3 * i, row + 3, 3 * sizeof(float));
    }
  });
  return 0;
}

// The number of samples of each ray that light reaches: counts [rays].
int eugen_visible_count(const float* sigma, const float* t_start, const float* t_end, const int64* offsets, int64 rays,
                        float max_thickness, int64* counts, int threads) {
  as_they_come(threads, rays, 64, [&](int64 r) {
    const int64 b = offsets[r];
    counts[r] = count_visible(sigma + b, t_start + b, t_end + b, offsets[r + 1] - b, max_thickness);
  });
  return 0;
}

// Copies the first rows of each ray, as many as kept_offsets [rays + 1] leave room for, of `arrays` arrays. The rows of
// array k have widths[k] numbers.
int eugen_visible_rows(const int64* offsets, const int64* kept_offsets, int64 rays, const float* const* from,
                       float* const* to, const int64* widths, int arrays, int threads) {
  as_they_come(threads, rays, 64, [&](int64 r) {
    for (int k = 0; k < arrays; k++) {
      const int64 numbers = widths[k] * (kept_offsets[r + 1] - kept_offsets[r]);
      if (numbers)  // there may be no array where there are no numbers
        memcpy(to[k] + widths[k] * kept_offsets[r], from[k] + widths[k] * offsets[r], numbers * sizeof(float));
    }
  });
  return 0;
}

// out [rays, 5]: rgb, alpha, depth of each ray.
int eugen_composite_forward(const float* sigma, const float* rgb, const float* t_start, const float* t_end,
                            const int64* offsets, int64 rays, float* out, int threads) {
  as_they_come(threads, rays, 64, [&](int64 r) {
    const int64 b = offsets[r];
    composite_forward(sigma + b, rgb + 3 * b, t_start + b, t_end + b, offsets[r + 1] - b, out + 5 * r);
  });
  return 0;
}

int eugen_composite_backward(const float* sigma, const float* rgb, const float* t_start, const float* t_end,
                             const int64* offsets, int64 rays, const float* grad_out, float* grad_sigma,
                             float* grad_rgb, int threads) {
  as_they_come(threads, rays, 64, [&](int64 r) {
    const int64 b = offsets[r];
    composite_backward(sigma + b, rgb + 3 * b, t_start + b, t_end + b, offsets[r + 1] - b, grad_out + 5 * r,
                       grad_sigma + b, grad_rgb + 3 * b);
  });
  return 0;
}

// One pass from rays to pixels. out [rays, 5]: rgb, alpha, depth; samples [rays].
int eugen_render(const float* origins, const float* directions, const float* near, const float* far, int64 rays,
                 const uint8* bits, int resolution, const float* box, int contracted, const float* rule,
                 const float* table, const int64* resolutions, const int64* offsets, int levels, int features,
                 int log2_table_size, const float* density, const int64* density_spec, const float* density_eps,
                 const float* color, const int64* color_spec, const float* color_eps, float min_transmittance,
                 float* out, int64* samples, int threads) {
  March m = make_march(box, contracted, rule, resolution, bits);
  const std::vector<uint8> blocks = survey(m, threads);
  const Field field{table, make_levels(resolutions, offsets, levels, log2_table_size), features,
                    Network(density_spec, density_eps, density), Network(color_spec, color_eps, color)};
  // Large enough to keep tiles full, and small enough to balance empty and dense parts of an image between many
  // threads: nerfstudio passes 16,384 rays at a time.
  const int64 chunk = 256, chunks = (rays + chunk - 1) / chunk;
#define EUGEN_CALL(F)                                                                                    \
  as_they_come(threads, chunks, 1, [&](int64 k) {                                                        \
    render_rays<F>(field, m, origins, directions, near, far, k * chunk, std::min(rays, (k + 1) * chunk), \
                   min_transmittance, out, samples);                                                     \
  })
  EUGEN_FOR_FEATURES(features, EUGEN_CALL)
#undef EUGEN_CALL
  return 0;
}

// Adam on those of the n values whose gradient is not zero. The others stay unchanged, including their moments.
int eugen_masked_adam(float* parameter, const float* grad, float* first, float* second, int64 n, float beta1,
                      float beta2, float eps, float step_size, float second_scale, int threads) {
  const AdamStep step{beta1, beta2, eps, step_size, second_scale};
  in_ranges(threads, n, [&](int64 b, int64 e, int) {
    adam_range(step, e - b, grad + b, parameter + b, first + b, second + b);
  });
  return 0;
}

// All products, one behind the other in `out`.
int eugen_factor_products_forward(const float* const* factors, const Product* products, int count, float* out, int) {
  for (int i = 0; i < count; i++) multiply(products[i], factors, out + products[i].start);
  return 0;
}

// The gradients of the factors; those that are not needed are null.
int eugen_factor_products_backward(const float* const* factors, const Product* products, int count, const float* grad,
                                   float* const* grads, int) {
  for (int i = 0; i < count; i++) clear_gradients(products[i], grads);
  for (int i = 0; i < count; i++) add_gradients(products[i], factors, grad + products[i].start, grads);
  return 0;
}

}  // extern "C"
