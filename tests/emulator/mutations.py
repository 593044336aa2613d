"""Bugs to plant into the CUDA sources, to check that the emulator's tests detect them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One planted bug."""

    file: str
    right: str  # the text in the file
    wrong: str
    cases: tuple[str, ...] = ()  # checks of test_mutations.py that should detect it

    @property
    def name(self) -> str:
        return f"{self.file}: {' '.join(self.right.split())} -> {' '.join(self.wrong.split()) or 'nothing'}"

    def plant(self, text: str) -> str:
        """The text of the file with the bug."""
        assert self.right in text, f"{self.name}: not in the source any longer"
        return text.replace(self.right, self.wrong)


def _of(file: str, *cases: str, pairs: list[tuple[str, str]]) -> list[Mutation]:
    return [Mutation(file, right, wrong, cases) for right, wrong in pairs]


MUTATIONS = [
    *_of(
        "chain.cuh",
        "network",
        pairs=[
            ("column = int(uint32(c) / IN_PADDED) * IN + in_feature;", "column = in_feature;"),
            ("return feature < OUT ? parameters", "return feature <= OUT ? parameters"),
            ("offsets_at(i) + (has_offsets(i) ? rows(i) : 0)", "offsets_at(i)"),
            ("return feature < out_block(I) ? at", "return feature <= out_block(I) ? at"),
            ("return in_block(i) % 2 == 0 && parameters_before", "return parameters_before"),
        ],
    ),
    *_of(
        "network_mma.cuh",
        "network",
        pairs=[
            ("int(threadIdx.x), THREADS);\n    sync_block();", "int(threadIdx.x), THREADS);"),
            ("r < C::n(I); r += THREADS", "r < C::n(I) - 1; r += THREADS"),
            ("weight_place<I>(r, c + 1)", "weight_place<I>(r, c)"),
            ("if (places.has_column(c + 1)) numbers", "if (places.has_column(c)) numbers"),
            ("if (places.has_column(column + 1)) numbers", "if (places.has_column(column)) numbers"),
            ("mine += shuffle_xor(mine, 1);\n", ""),
            ("norms[m][q >> 1] * norm_column", "norms[m][q & 1] * norm_column"),
            ("multiply_add(c[m][0], a[m][k], b[0], b[1]);", "multiply_add(c[m][0], a[m][k], b[1], b[0]);"),
            ("load_matrices(b, p + k * 16);", "load_matrices(b, p + k * 8);"),
            ("low = c[i >> 1][2 * (i & 1)], high", "low = c[i & 1][2 * (i >> 1)], high"),
            ("block(right, C::is_shared(I) ? 1 : 2, tile);", "block(right, 1, tile);"),
        ],
    ),
    *_of(
        "network_mma.cuh",
        "even",
        pairs=[
            ("return m * 16 + half * 8 < rows;", "return m * 16 + half * 8 <= rows;"),
            ("rows = n - first - place.row;", "rows = n - first;"),
            ("return c + column < WIDTH;", "return c + column <= WIDTH;"),
            ("column = FOURS ? 2 * place.column : place.column;", "column = place.column;"),
            ("numbers.set(h, c[m][h][2 * half] * scale", "numbers.set(h, c[m][half][2 * h] * scale"),
            ("a[m][k][half + 2 * h] = numbers", "a[m][k][2 * half + h] = numbers"),
            ("return pack_bounded(v[2 * h] * scale, v[2 * h + 1] * scale);",
             "return pack_bounded(v[2 * h + 1] * scale, v[2 * h] * scale);"),
        ],
    ),
    *_of(
        "network_mma.cuh",
        "pairs",
        pairs=[
            ("if (places.has_column(c)) numbers.load(", "if (places.has_column(c - 2)) numbers.load("),
            ("if (places.has_column(column)) numbers.store(", "if (places.has_column(column - 2)) numbers.store("),
        ],
    ),
    *_of(
        "chain.cuh",
        "even",
        pairs=[
            ("if constexpr (I == 0 && in_fours) in_feature", "if constexpr (I == 1 && in_fours) in_feature"),
            ("= column_in_fours(in_feature);\n    if constexpr (I == stages && out_fours)",
             "= column_in_fours(in_feature);\n    if constexpr (false)"),
            ("feature = column_in_fours(feature);\n    return", "return"),
            ("(c >> 1 & 3) * 4 + (c >> 3 & 1) * 2", "(c >> 1 & 3) * 2 + (c >> 3 & 1) * 8"),
        ],
    ),
    *_of(
        "network_mma.cuh",
        "padded",
        pairs=[
            ("if (!places.has_four(k * 16))", "if (false)"),
            ("for (int e = FIRST; e < 4; e++) v[e] = 0.f;", "for (int e = FIRST + 1; e < 4; e++) v[e] = 0.f;"),
            ("c + column + 4 <= WIDTH", "c + column + 3 <= WIDTH"),
            ("(first + place.row) * ROW + column", "(first + place.row) * WIDTH + column"),
            ("(m * 16 + half * 8) * ROW + c;", "(m * 16 + half * 8) * WIDTH + c;"),
        ],
    ),
    *_of(
        "network_mma.cuh",
        "padded_halves",
        pairs=[
            ("e & 1 ? 0xffffu : 0u", "e & 1 ? 0xffffffffu : 0u"),
            ("e & 1 ? 0xffffu : 0u", "0u"),
        ],
    ),
    *_of(
        "network_mma.cuh",
        "streamed",
        pairs=[
            ("wait_for_copies();", ""),
            ("wait_for_copies();\n      sync_block();", "sync_block();\n      wait_for_copies();"),
            ("sync_block();  // everybody's copies", "// everybody's copies"),
            ("if (!on_its_way) fetch(part);", "if (on_its_way) fetch(part);"),
            ("halves = spare;", ""),
            ("tile * 16 * LD, C::out_blocks(I), 16 * LD", "tile * 16 * LD, 1, 16 * LD"),
        ],
    ),
    *_of(
        "network_backward.cuh",
        "network",
        pairs=[
            ("127 + 127 + TARGET_EXPONENT - exponent", "127 + TARGET_EXPONENT - exponent"),
            ("sync_block();  // the gradient of the matrix before has been read", ""),
            ("gradient_row);\n    sync_block();", "gradient_row);"),
            ("sync_block();  // the activations of the rows before have been read", ""),
            ("pack_bounded(1.f, norm)", "pack_bounded(norm, 1.f)"),
            ("gradient + block / WIDE * Blocks::rows * 16", "gradient + block % WIDE * Blocks::rows * 16"),
            ("sum[tile][h][q] * inverse_scale", "sum[tile][h][q]"),
            ("grad_parameters + norm, sum[2 * half + 1]", "grad_parameters + norm, sum[2 * half]"),
            ("if constexpr (SHOWN && PHI == RELU_PHI)", "if constexpr (PHI == IDENTITY_PHI)"),
            ("du[m][tile][i], own_word<I>(m, tile, i))", "du[m][tile][i], own_word<I>(m, tile, i ^ 1))"),
            ("first[m][e >> 2][e & 3] += passed * r;", "first[m][e >> 2][e & 3] = passed * r;"),
            ("(SHARED ? 1 : 2) * BLOCK_TILES", "BLOCK_TILES"),
            ("= passed * l;", "= passed * r;"),
            ("slope(PHI, l * r)", "slope(PHI, l)"),
            ("load_matrices_transposed(b, p + n * 16 * LD);", "load_matrices_transposed(b, p + n * 16);"),
            ("(lane_index() & 15) * LD", "(lane_index() & 7) * LD"),
            ("base += int64(gridDim.x) * rows", "base += rows"),
            ("m * 16 + place.row + (i & 1) * 8;\n    return", "m * 16 + place.row + (i >> 1) * 8;\n    return"),
        ],
    ),
    *_of(
        "network_backward.cuh",
        "blocks",
        pairs=[
            ("(block / WIDE * Blocks::rows + tile / Blocks::columns) * 16", "(block / WIDE * Blocks::rows) * 16"),
            ("(block % WIDE * Blocks::columns + tile % Blocks::columns) * 16", "(block % WIDE * Blocks::columns) * 16"),
            ("right + r * LD + j * 16", "right + r * LD"),
            ("left + r * gradient_row + i * 16", "left + r * gradient_row"),
            ("sum[i * Blocks::columns + j][0], a[i]", "sum[i * Blocks::columns + j][0], a[0]"),
        ],
    ),
    *_of(
        "network_backward.cuh",
        "smooth",
        pairs=[
            ("(!SHOWN) block(single, 0, tile);", "(SHARED) block(single, 0, tile);"),
            ("slope(PHI, single[m][e >> 2][e & 3])", "slope(PHI, first[m][e >> 2][e & 3])"),
            ("(!SHOWN || PRODUCTS) {\n      own_inputs<S>(a);", "(PRODUCTS) {\n      own_inputs<S>(a);"),
        ],
    ),
    *_of(
        "chain.cuh",
        "inner_norm",
        pairs=[
            ("r - projected(I) < norm_rows(I) ? form_at", "r - projected(I) <= norm_rows(I) ? form_at"),
            ("form_at(i) + norm_rows(i) * columns(i)", "form_at(i)"),
            ("sum += norm_rows(j) * (columns(j) + 1);", "sum += norm_rows(j) * columns(j);"),
        ],
    ),
    *_of(
        "network_mma.cuh",
        "inner_norm",
        pairs=[
            ("sums[m][e >> 1 & 1] +=", "sums[m][e & 1] +="),
            ("offsets<I>() + C::projected(I) + tile * 16", "offsets<I>() + C::projected(I)"),
            ("(C::projected(I) + tile * 16) * C::row(I)", "(C::projected(I)) * C::row(I)"),
        ],
    ),
    *_of(
        "network_backward.cuh",
        "inner_norm",
        pairs=[
            ("const float factor = pull[m][i & 1];", "const float factor = pull[m][i >> 1];"),
            ("g[m][FIRST + tile][i] = pack_word", "g[m][FIRST][i] = pack_word"),
            ("has_norm(i) && C::norm_rows(i) == 0", "has_norm(i)"),
        ],
    ),
    *_of(
        "network_mma.cuh",
        "inner_norm_streamed",
        pairs=[
            ("+ (C::projected(I) + tile * 16) * C::row(I), 1,", "+ tile * 16 * C::row(I), 1,"),
            ("? weights.template norm_part<I>(tile + 1)", "? weights.template norm_part<I>(tile)"),
        ],
    ),
    *_of(
        "grid.cu",
        "grid",
        pairs=[
            ("if (i >= n) return;", "if (i > n) return;"),
            ("count == GROUP && levels.count * F % 4 == 0", "levels.count * F % 4 == 0"),
            ("if (f < count * F) to[f]", "to[f]"),
            ("if (number >= levels.count) break;", "if (number > levels.count) break;"),
            ("bool first = lane == 0;", "bool first = false;"),
            ("first = first || before != cell.vertex[a];", "first = first || (a < 2 && before != cell.vertex[a]);"),
            ("votes(lane + step < end); step *= 2", "step < 2; step *= 2"),
            ("if (lane + step < end)", "if (lane + step <= end)"),
            ("~(2u * (1u << lane) - 1)", "~((1u << lane) - 1)"),
            ("shuffle_xor(upper ? v[s] : v[s | bit], bit)", "shuffle_xor(upper ? v[s | bit] : v[s], bit)"),
            ("v[s | bit] = upper ? v[s | bit] : taken;", "v[s | bit] = taken;"),
            ("rows[s] = adds ? corner_rows[s * UNIT / F] : none;", "rows[s] = corner_rows[s * UNIT / F];"),
            ("share[s * UNIT / F][s * UNIT % F + u]", "share[s * UNIT / F][u]"),
            ("lane_index() * UNIT % F", "lane_index() * UNIT % (2 * F)"),
            ("c += CORNERS", "c += 2 * CORNERS"),
            ("position[a] > 0.f && position[a] < 1.f ? total[a] : 0.f", "total[a]"),
        ],
    ),
    *_of(
        "products.cu",
        "products",
        pairs=[
            ("products.at[number + 1].start <= i) number++", "products.at[number + 1].start < i) number++"),
            ("grads.start[factor + 1] <= i) factor++", "grads.start[factor + 1] < i) factor++"),
            ("p.constant < 0 ? 0.f : factors.at[p.constant][row]", "0.f"),
            ("if (i >= grads.start[grads.count]) return;", "if (i > grads.start[grads.count]) return;"),
            ("if (!grads.at[factor]) return;", ""),
            ("left[row * p.inner + k], g[row", "left[row * p.inner], g[row"),
        ],
    ),
    *_of(
        "rays.cu",
        "rays",
        pairs=[
            ("range.end > n ? n : range.end", "range.end"),
            ("x < low[0] + BLOCK && x < r", "x < low[0] + BLOCK - 1 && x < r"),
            ("int64 begin = offsets[r];", "int64 begin = offsets[r] + 1;"),
            ("count_bits(samples & lanes_before)", "lane_index()"),
            ("samples ? highest_bit(samples) : 0", "samples ? lowest_bit(samples) : 0"),
            ("if (samples) stop = last;", "stop = last;"),
            ("(1u << lane_index()) - 1;", "(2u << lane_index()) - 1;"),
            ("i += WARP) {", "i += WARP + 1) {"),
            ("counts[r] = count;\n}\n\n// Copies", "counts[r ^ 1] = count;\n}\n\n// Copies"),
            ("from[blockIdx.y] + width * samples_of(offsets, r, n).begin;", "from[blockIdx.y] + width * kept;"),
            ("width * (kept_offsets[r + 1] - kept);", "kept_offsets[r + 1] - kept;"),
            ("to[blockIdx.y] + width * kept;", "to[blockIdx.y] + kept;"),
            ("if (r >= rays) return;\n  const Range range = samples_of(offsets, r, n);\n  float sums",
             "if (r > rays) return;\n  const Range range = samples_of(offsets, r, n);\n  float sums"),
        ],
    ),
    *_of(
        "march.cuh",
        "rays",
        pairs=[
            ("if (number < walk.count)", "if (number <= walk.count)"),
            ("walk.number += WARP - 1 +", "walk.number += WARP +"),
            ("skip = steps_over(m, walk, step, empty);", "skip = 2 * steps_over(m, walk, step, empty);"),
        ],
    ),
    *_of(
        "composite.cuh",
        "rays",
        pairs=[
            ("if (lane_index() >= by) sum", "if (lane_index() > by) sum"),
            ("lane_index() > 0 ? lower : 0.f", "lower"),
            ("optical += double(shuffle(sum, WARP - 1));", "optical += double(sum);"),
            ("thickness == thickness ? thickness : 0.f", "0.f"),
            ("thickness == thickness ? thickness : 0.f", "thickness"),
            ("votes(i < end && group.before", "votes(group.before"),
            ("by = WARP / 2; by > 0", "by = WARP / 4; by > 0"),
            ("if (lane_index() + by < WARP) sum", "if (lane_index() + by <= WARP) sum"),
            ("lane_index() < WARP - 1 ? higher : 0.f", "higher"),
            ("later += shuffle(sum, 0);", "later = shuffle(sum, 0);"),
        ],
    ),
    *_of(
        "render.cu",
        "render",
        pairs=[
            ("mine.encoded[lane]);\n    sync_warp();", "mine.encoded[lane]);"),
            ("density_eps, outputs);\n    }\n    sync_warp();", "density_eps, outputs);\n    }"),
            ("color_eps, outputs);\n    }\n    sync_warp();", "color_eps, outputs);\n    }"),
            ("wanting & ((1u << lane) - 1)", "wanting & ((2u << lane) - 1)"),
            ("HARMONICS - 1 + column", "HARMONICS + column"),
            ("optical <= opaque && next_sample", "next_sample"),
            ("const uint16* p = by_input(rows, ld);", "const uint16* p = by_output(rows, ld);"),
            ("optical = 0.f;\n          used = 0;", "used = 0;"),
            ("store_halves(&mine.color_inputs[lane][c], 0);\n  sync_warp();",
             "store_halves(&mine.color_inputs[lane ^ 1][c], 0);"),
        ],
    ),
]  # fmt: skip
