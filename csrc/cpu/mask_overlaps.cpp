// mask_overlaps on the CPU: all masks are read once, a block of pixels of each at a time, and counted against each other
// while they are in the cache. Most masks have no pixel in most blocks, and those are not compared.
#include "segops/mask_overlaps.h"

#include "isa.h"
#include "parallel.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

using Byte = Vec<uint8_t, SEGOPS_VECTOR_BYTES>;
using Word = Vec<uint64_t, SEGOPS_VECTOR_BYTES / 8>;

// Pixels of a block. A lane counts at most 255, and the sums of two lanes over all of a vector stay below 2^16.
constexpr int64_t kBlock = 2048;
constexpr int64_t kItem = 8 * kBlock;
constexpr int64_t kSerialBytes = 1 << 17;
static_assert(kBlock / SEGOPS_VECTOR_BYTES <= 255);

SEGOPS_INLINE int64_t sum_of(Byte counts) {
  constexpr uint64_t kEven = 0x00ff00ff00ff00ff, kOnes = 0x0001000100010001;
  const Word pairs = reinterpret_cast<Word>(counts), sums = (pairs & kEven) + ((pairs >> 8) & kEven);
  uint64_t total = 0;
  for (int i = 0; i < SEGOPS_VECTOR_BYTES / 8; ++i) total += sums[i];
  return static_cast<int64_t>(total * kOnes >> 48);
}

// Copies a block of a mask as bytes of 0 and 1, padded with zeros; how many ones there are.
inline int64_t take(const uint8_t* mask, int64_t size, uint8_t* block) {
  Byte counts{};
  for (int64_t i = 0; i < kBlock; i += SEGOPS_VECTOR_BYTES) {
    Byte v{};
    if (i + SEGOPS_VECTOR_BYTES <= size)
      v = *reinterpret_cast<const Unaligned<uint8_t, SEGOPS_VECTOR_BYTES>*>(mask + i);
    else if (i < size)
      __builtin_memcpy(&v, mask + i, static_cast<size_t>(size - i));
    v = reinterpret_cast<Byte>(v != 0) & 1;
    *reinterpret_cast<Byte*>(block + i) = v;
    counts += v;
  }
  return sum_of(counts);
}

inline int64_t common(const uint8_t* a, const uint8_t* b) {
  Byte counts[2]{};
  for (int64_t i = 0; i < kBlock; i += 2 * SEGOPS_VECTOR_BYTES)
    for (int k = 0; k < 2; ++k) {
      const int64_t at = i + k * SEGOPS_VECTOR_BYTES;
      counts[k] += *reinterpret_cast<const Byte*>(a + at) & *reinterpret_cast<const Byte*>(b + at);
    }
  return sum_of(counts[0] + counts[1]);
}

}  // namespace

Status mask_overlaps(const MaskOverlaps& p, const Parallel& parallel) {
  const int64_t detections = p.detection_count, masks = detections + p.object_count, items = (p.pixels + kItem - 1) / kItem;
  // Of each worker: what it counted, in integers, so that nobody's share matters; and the masks of a block.
  const int64_t cells = detections * p.object_count, counters = (cells + masks + 15) / 16 * 16;
  Parallel few = parallel;
  if (items < few.workers) few.workers = static_cast<int32_t>(items > 0 ? items : 1);
  const Memory counted(few.workers * counters * 8), blocks(few.workers * masks * (kBlock + 8), false);
  if (!counted.data || !blocks.data) return Status::out_of_memory;
  const auto counts_of = [&](int64_t worker) { return reinterpret_cast<int64_t*>(counted.data) + worker * counters; };

  for_each_item(few, items, masks * p.pixels < kSerialBytes, [&](int64_t item, int32_t worker) {
    int64_t* const both = counts_of(worker);
    int64_t* const areas = both + cells;
    uint8_t* const taken = reinterpret_cast<uint8_t*>(blocks.data) + worker * masks * kBlock;
    int64_t* const some = reinterpret_cast<int64_t*>(blocks.data + few.workers * masks * kBlock) + worker * masks;
    const int64_t end = (item + 1) * kItem < p.pixels ? (item + 1) * kItem : p.pixels;
    for (int64_t first = item * kItem; first < end; first += kBlock) {
      const int64_t size = end - first < kBlock ? end - first : kBlock;
      for (int64_t i = 0; i < masks; ++i) {
        const uint8_t* const mask = i < detections ? p.detections + i * p.pixels : p.objects + (i - detections) * p.pixels;
        some[i] = take(mask + first, size, taken + i * kBlock);
        areas[i] += some[i];
      }
      for (int64_t i = 0; i < detections; ++i)
        for (int64_t k = 0; some[i] > 0 && k < p.object_count; ++k)
          if (some[detections + k] > 0)
            both[i * p.object_count + k] += common(taken + i * kBlock, taken + (detections + k) * kBlock);
    }
  });

  const auto total = [&](int64_t at) {
    int64_t sum = 0;
    for (int32_t worker = 0; worker < few.workers; ++worker) sum += counts_of(worker)[at];
    return static_cast<double>(sum);
  };
  for (int64_t i = 0; i < cells; ++i) p.both[i] = total(i);
  for (int64_t i = 0; i < detections; ++i) p.detection_areas[i] = total(cells + i);
  for (int64_t i = 0; i < p.object_count; ++i) p.object_areas[i] = total(cells + detections + i);
  return Status::ok;
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(mask_overlaps, MaskOverlaps)
#endif
