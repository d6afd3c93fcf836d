/**
 * Rotary position embedding (Su et al. 2021) in the order of Llama's and Qwen2's checkpoints: number i of a head turns with number i + R / 2,
 * and what lies beyond the first R numbers stays (a partial rotary factor).
 *
 *   rope  x [B, N, H·dh], positions int32 [B or 1, N], inverse frequencies float32 [R / 2]; numbers: heads, factor, 1 or -1, dtype of y
 *           -> y [B, N, H·dh], each pair turned by position · frequency and scaled by the factor; -1 turns the other way: the gradient
 *
 * Angles are float32 products, as PyTorch forms them; their sine and cosine are right for every position.
 */
#include <algorithm>

#include "values.h"

namespace vitrine {
namespace {

typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef int64_t Longs __attribute__((vector_size(8 * kLanes)));

/** sin and cos within 1e-7. The quarter turns are taken off in double; the polynomials on |r| <= π / 4 are our own least-maximum fits. */
inline void sineCosine(Floats x, Floats& sine, Floats& cosine) {
  const Doubles y = __builtin_convertvector(x, Doubles);
  constexpr double kShift = 6755399441055744.0; // 1.5 · 2^52: adding it rounds to a whole number, whose last bits are then the quadrant's
  const Doubles shifted = y * 0.63661977236758134 + kShift;
  const Floats r = __builtin_convertvector(y - (shifted - kShift) * 1.5707963267948966, Floats);
  const Ints quadrant = __builtin_convertvector((Longs)shifted & 3, Ints);
  const Floats square = r * r;
  Floats s = square * -1.9517234691e-4f + 8.3321776864e-3f;
  s = s * square - 1.6666654937e-1f;
  s = s * square * r + r;
  Floats c = square * 2.4438379478e-5f - 1.388736691e-3f;
  c = c * square + 4.1666646855e-2f;
  c = c * square * square + (1.0f - 0.5f * square);
  const Floats first = (quadrant & 1) != 0 ? c : s, second = (quadrant & 1) != 0 ? s : c;
  sine = (quadrant & 2) != 0 ? -first : first;
  cosine = ((quadrant + 1) & 2) != 0 ? -second : second;
}

/** Sines and cosines of a token's angles, to be used for all of its heads. */
struct Turn {
  float *sine, *cosine;
};

void turnOf(int32_t position, Reader frequencies, int64_t half, float factor, float direction, Turn turn) {
  const Writer sines{turn.sine, nullptr}, cosines{turn.cosine, nullptr};
  const float at = static_cast<float>(position);
  overLanes(0, half, [&](int64_t j, auto part) {
    Floats s, c;
    sineCosine(frequencies(j, part) * at, s, c);
    sines(j, part, s * (factor * direction));
    cosines(j, part, c * factor);
  });
}

void turnHead(Reader x, Turn turn, int64_t half, int64_t width, Writer y) {
  const Reader sines{turn.sine, nullptr}, cosines{turn.cosine, nullptr};
  overLanes(0, half, [&](int64_t j, auto part) {
    const Floats a = x(j, part), b = x(half + j, part), s = sines(j, part), c = cosines(j, part);
    y(j, part, a * c - b * s);
    y(half + j, part, b * c + a * s);
  });
  overLanes(2 * half, width, [&](int64_t j, auto part) { y(j, part, x(j, part)); });
}

void rope(Call& call) {
  const View& x = call.input(0, {kFloat32, kBfloat16}, {-1, -1, -1});
  const int64_t B = x.dims[0], N = x.dims[1], D = x.dims[2], heads = call.integer(0, 1, 1 << 20);
  const View& positions = call.input(1, {kInt32}, {-1, N});
  if (positions.dims[0] != 1 && positions.dims[0] != B)
    call.fail("positions are %s for x %s; expected a row for each of the batch, or one for all", describe(positions).c_str(),
              describe(x).c_str());
  const View& frequencies = call.input(2, {kFloat32}, {-1});
  const int64_t width = D / heads, half = frequencies.dims[0];
  if (D % heads || 2 * half > width)
    call.fail("x %s does not hold %lld heads of at least %lld numbers (twice the frequencies)", describe(x).c_str(),
              static_cast<long long>(heads), static_cast<long long>(2 * half));
  const float factor = static_cast<float>(call.number(1));
  const int64_t direction = call.integer(2, -1, 1);
  if (direction == 0) call.fail("number 2, the direction, is 0; expected 1 or -1");
  const View& y = call.output(dtypeNumber(call, 3), x.dims);

  const Reader from = reader(x), turning = reader(frequencies);
  const Writer to = writer(y);
  const int32_t* position = positions.ints();
  const int64_t rows = positions.dims[0] == 1 ? N : B * N;
  parallel(B * N, rowsPerChunk(D, 16384), [&](int64_t begin, int64_t end) {
    const int64_t room = (half + kLanes) / kLanes * kLanes;
    float* memory = scratch<float, 0>(2 * room);
    const Turn turn{memory, memory + room};
    for (int64_t i = begin; i < end; i++) {
      turnOf(position[i % rows], turning, half, factor, static_cast<float>(direction), turn);
      for (int64_t h = 0; h < heads; h++) turnHead(from.from(i * D + h * width), turn, half, width, to.from(i * D + h * width));
    }
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("rope", vitrine::rope)
