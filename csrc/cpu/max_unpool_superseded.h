// Indices of overlapping windows without those that a later window supersedes. Compiled into every ISA namespace.
#pragma once
#include "max_unpool_single.h"

namespace segops::SEGOPS_ISA {
namespace {

constexpr uint8_t kNowhere = 255;  // the index of no tap of windows of fewer than 256

// Where taps of windows of a neighbourhood are, as one number each, such that equal ones are equal elements.
class Positions {
 public:
  static constexpr uint16_t kNone = 0x8000;  // with whatever is added to it, no tap's position

  Positions(const WindowAxis& vertical, const WindowAxis& horizontal) : vertical_(vertical), horizontal_(horizontal) {
    for (int64_t tap = 0; tap < 256; ++tap) {
      const int64_t ky = tap / horizontal.kernel, kx = tap % horizontal.kernel;
      of_[tap] = ky < vertical.kernel ? static_cast<uint16_t>(number(ky, kx)) : kNone;
    }
  }
  uint16_t operator[](uint8_t tap) const { return of_[tap]; }

  // How many windows before and after may share an element with one.
  static int64_t reach(const WindowAxis& axis) { return (axis.kernel - 1) * axis.dilation / axis.stride; }

  // Whether windows dy rows and dx columns apart share elements; if so, `shift` is what lies between their numbers.
  bool share(int64_t dy, int64_t dx, uint16_t& shift) const {
    const int64_t y = dy * vertical_.stride, x = dx * horizontal_.stride;
    if (y % vertical_.dilation != 0 || x % horizontal_.dilation != 0) return false;
    shift = static_cast<uint16_t>(number(y / vertical_.dilation, x / horizontal_.dilation));
    return true;
  }

 private:
  // Columns of two windows are less than two kernels apart.
  int64_t number(int64_t ky, int64_t kx) const { return ky * 2 * horizontal_.kernel + kx; }

  WindowAxis vertical_, horizontal_;
  uint16_t of_[256];
};

// Rows of positions, with windows beside them that point nowhere. `channels` of a window are neighbours.
class PositionRows {
 public:
  static constexpr int kLanes = SEGOPS_VECTOR_BYTES / 2;

  PositionRows(const MaxUnpoolBackward& p, const Positions& positions, int64_t channels)
      : indices_(p.indices),
        positions_(positions),
        channels_(channels),
        beside_(Positions::reach(p.horizontal) * channels),
        slots_(Positions::reach(p.vertical) + 1),
        extent_(2 * beside_ + p.indices.width * channels + kLanes) {}

  int64_t bytes() const {
    return (slots_ * (extent_ * int64_t{sizeof(uint16_t)} + int64_t{sizeof(int64_t)}) + 63) / 64 * 64;
  }
  void forget(char* scratch) const {
    for (int64_t slot = 0; slot < slots_; ++slot) held(scratch)[slot] = -1;
  }

  const uint16_t* read(char* scratch, const Band& b, int64_t row) const {
    const int64_t slot = row % slots_;
    uint16_t* const all = reinterpret_cast<uint16_t*>(held(scratch) + slots_) + slot * extent_;
    if (held(scratch)[slot] == row) return all + beside_;
    held(scratch)[slot] = row;
    const uint8_t* from = row_of<const uint8_t>(indices_, b, row);
    uint16_t* to = all;
    for (int64_t i = 0; i < beside_; ++i) *to++ = Positions::kNone;
    for (int64_t x = 0; x < indices_.width; ++x, from += indices_.stride_w)
      for (int64_t c = 0; c < channels_; ++c) *to++ = positions_[from[c]];
    while (to < all + extent_) *to++ = Positions::kNone;
    return all + beside_;
  }

 private:
  int64_t* held(char* scratch) const { return reinterpret_cast<int64_t*>(scratch); }

  PlanesOf<const uint8_t> indices_;
  const Positions& positions_;
  int64_t channels_, beside_, slots_, extent_;
};

// Copies indices, kNowhere in place of those whose element a later window points at too. `to` has rows of dense pixels.
inline Status copy_standing(const MaxUnpoolBackward& p, const PlanesOf<uint8_t>& to, bool together,
                            const Parallel& parallel) {
  constexpr int kLanes = PositionRows::kLanes;
  using V = Vec<uint16_t, kLanes>;
  const int64_t channels = together ? to.channels : 1;
  const Positions positions(p.vertical, p.horizontal);
  const PositionRows rows(p, positions, channels);
  const Memory scratch(parallel.workers * rows.bytes(), false);
  if (!scratch.data) return Status::out_of_memory;
  const Planes cut{to.data, to.batch, to.channels, to.height, to.width, to.stride_n, to.stride_c, to.stride_h, to.stride_w};
  const int64_t bytes = to.batch * to.channels * to.height * to.width * 4;
  for_each_band(cut, together, to.height, bytes, parallel, [&](const Band& b) {
    char* const mine = scratch.data + b.worker * rows.bytes();
    rows.forget(mine);
    struct Later {
      const uint16_t* row;
      uint16_t shift;
    } later[512];
    for (int64_t y = b.begin; y < b.end; ++y) {
      const uint16_t* const own = rows.read(mine, b, y);
      const int64_t below = Positions::reach(p.vertical), beside = Positions::reach(p.horizontal);
      int64_t count = 0;
      for (int64_t dy = 0; dy <= below && y + dy < to.height; ++dy) {
        const uint16_t* const row = rows.read(mine, b, y + dy);
        for (int64_t dx = dy == 0 ? 1 : -beside; dx <= beside; ++dx)
          if (uint16_t shift; positions.share(dy, dx, shift)) later[count++] = Later{row + dx * channels, shift};
      }
      const uint8_t* const from = row_of<const uint8_t>(p.indices, b, y);
      uint8_t* const target = row_of<uint8_t>(to, b, y);
      const int64_t extent = to.width * channels;
      for (int64_t i = 0; i < extent; i += kLanes) {
        const V position = *reinterpret_cast<const Unaligned<uint16_t, kLanes>*>(own + i);
        V superseded{};
        for (int64_t j = 0; j < count; ++j) {
          const V other = *reinterpret_cast<const Unaligned<uint16_t, kLanes>*>(later[j].row + i) + later[j].shift;
          superseded |= reinterpret_cast<V>(other == position);
        }
        uint8_t mask[kLanes];
        *reinterpret_cast<Unaligned<uint8_t, kLanes>*>(mask) = __builtin_convertvector(superseded, Vec<uint8_t, kLanes>);
        const int64_t last = i + kLanes < extent ? i + kLanes : extent;
        for (int64_t k = i; k < last; ++k) target[k] = mask[k - i];
      }
      for (int64_t x = 0; x < to.width; ++x)
        for (int64_t c = 0; c < channels; ++c) target[x * channels + c] |= from[x * p.indices.stride_w + c];
    }
  });
  return Status::ok;
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
