// Quantizes two rows of weights on the host.
#include <cstdio>

#include <waterweight/reference/quantize.hpp>
#include <waterweight/version.hpp>

int main() {
  float w[2][4] = {{1.0f, -0.5f, 0.25f, 0.0f}, {2.0f, 127.0f, -64.0f, 3.0f}};
  std::int8_t q[2][4];
  float scale[2];
  waterweight::reference::quantize_per_channel(
      waterweight::matrix_view<float>{w[0], 2, 4, 4},
      waterweight::mutable_int8_weight_view{q[0], scale, 2, 4, 4});
  std::printf("waterweight %d.%d.%d: scale %g and %g, first row %d %d %d %d\n",
              WATERWEIGHT_VERSION_MAJOR, WATERWEIGHT_VERSION_MINOR, WATERWEIGHT_VERSION_PATCH,
              scale[0], scale[1], q[0][0], q[0][1], q[0][2], q[0][3]);
  return q[0][0] == 127 && scale[1] == 1.0f ? 0 : 1;
}
