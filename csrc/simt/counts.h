// Counts of memory requests, as a GPU's memory system would see them.
//
// The lanes of a warp run one by one here, so requests are put together afterwards: the n-th access of each lane through one
// instruction, since the warp last met, belongs to the same request. That is how lanes that run in step would do it. A
// vector (uint4) is one access where the source copies it whole, and one for each member that the source names.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "access.h"

namespace segops::simt {

enum class Space : uint8_t { global, shared };

// A small number for an instruction, the same in all launches.
int site_of(const void* return_address);
const void* return_address_of(int site);

void counts_launch_starts();
void count_access(int site, Space space, Access access, const void* address, size_t bytes);
void counts_warp_met(int warp);  // closes its requests

}  // namespace segops::simt
