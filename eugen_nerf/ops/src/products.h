// Products of small matrices and their gradients, with which a network's layers are merged.
//
// A product is left [rows, inner] times right [inner, columns], plus a constant [rows] if columns is 1. Without left,
// it is right [rows, columns] itself. Positions of factors that do not exist are -1.
#pragma once
#include "common.h"

namespace eugen {

enum { MAX_PRODUCTS = 48, MAX_FACTORS = 64 };  // as in products.py

struct Product {
  int left, right, constant;  // positions of factors
  int rows, inner, columns;
  int start;  // index of its first value among those of all products
};

}  // namespace eugen
