// Products of small matrices and their gradients, with which a network's layers are merged in every training step.
#include "products.h"
#include "simt.cuh"

using namespace eugen;

struct Products {
  int count;
  Product at[MAX_PRODUCTS];
};

struct Factors {
  const float* at[MAX_FACTORS];
};

struct Gradients {
  int count;
  int start[MAX_FACTORS + 1];  // index of a factor's first value among those of all factors, and their number
  float* at[MAX_FACTORS];      // null: not needed
};

// A thread computes one of the n values of all products.
EUGEN_KERNEL(128)
factor_products_forward(const Factors factors, const Products products, int n, float* __restrict__ out) {
  const int i = int(blockIdx.x) * 128 + int(threadIdx.x);
  if (i >= n) return;
  int number = 0;
  while (number + 1 < products.count && products.at[number + 1].start <= i) number++;
  const Product& p = products.at[number];
  const int j = i - p.start;
  const float* right = factors.at[p.right];
  if (p.left < 0) {
    out[i] = right[j];
    return;
  }
  const int row = j / p.columns, column = j % p.columns;
  const float* left = factors.at[p.left] + row * p.inner;
  float sum = p.constant < 0 ? 0.f : factors.at[p.constant][row];
  for (int k = 0; k < p.inner; k++) sum = fma(left[k], right[k * p.columns + column], sum);
  out[i] = sum;
}

// A thread computes the gradient of one value of all factors: the sum over the products that the factor is part of.
EUGEN_KERNEL(128)
factor_products_backward(const Factors factors, const Products products, const float* __restrict__ grad,
                         const Gradients grads) {
  const int i = int(blockIdx.x) * 128 + int(threadIdx.x);
  if (i >= grads.start[grads.count]) return;
  int factor = 0;
  while (grads.start[factor + 1] <= i) factor++;
  if (!grads.at[factor]) return;
  const int j = i - grads.start[factor];
  float sum = 0.f;
  for (int number = 0; number < products.count; number++) {
    const Product& p = products.at[number];
    const float* g = grad + p.start;
    if (p.right == factor) {
      if (p.left < 0) {
        sum += g[j];
      } else {
        const int k = j / p.columns, column = j % p.columns;
        const float* left = factors.at[p.left];
        for (int row = 0; row < p.rows; row++) sum = fma(left[row * p.inner + k], g[row * p.columns + column], sum);
      }
    }
    if (p.left == factor) {
      const int row = j / p.inner, k = j % p.inner;
      const float* right = factors.at[p.right] + k * p.columns;
      for (int column = 0; column < p.columns; column++) sum = fma(g[row * p.columns + column], right[column], sum);
    }
    if (p.constant == factor) sum += g[j];
  }
  grads.at[factor][j] = sum;
}
