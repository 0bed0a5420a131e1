#include "schedule.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

namespace segops::simt {

uint64_t Random::next() {  // splitmix64
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

namespace {

constexpr int kChange = 32;  // one scheduling point in so many changes the ranking

template <class T>
void shuffle(std::vector<T>& values, Random& random) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random.next() % i]);
}

}  // namespace

void Schedule::start_launch(Mode mode, uint64_t seed) {
  mode_ = mode;
  random_ = Random(seed);
}

std::vector<int64_t> Schedule::block_order(int64_t blocks) {
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (mode_ == Mode::last) {
    for (int64_t i = 0; i < blocks; ++i) order[i] = blocks - 1 - i;
  } else if (mode_ != Mode::warp) {
    shuffle(order, random_);
  }
  return order;
}

void Schedule::start_block(int threads) {
  count_ = threads;
  ready_.assign((threads + 31) / 32, 0);
  for (int t = 0; t < threads; ++t) ready_[t / 32] |= 1u << t % 32;
  order_.resize(threads);
  place_.resize(threads);
  std::iota(order_.begin(), order_.end(), 0);
  if (mode_ == Mode::last) {
    std::rotate(order_.begin(), order_.begin() + random_.below(threads), order_.end());
  }
  if (mode_ == Mode::priority) {
    shuffle(order_, random_);
    if (random_.below(2) == 0) {  // whole warps in a row: only together do lanes get far ahead of other warps
      std::vector<int> warps((threads + 31) / 32);
      std::iota(warps.begin(), warps.end(), 0);
      shuffle(warps, random_);
      std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return warps[a / 32] < warps[b / 32]; });
    }
    ready_ranks_.assign((threads + 63) / 64, 0);
    for (int rank = 0; rank < threads; ++rank) ready_ranks_[rank / 64] |= uint64_t{1} << rank % 64;
  }
  for (int i = 0; i < threads; ++i) place_[order_[i]] = i;
}

void Schedule::set_ready(int thread) {
  ready_[thread / 32] |= 1u << thread % 32;
  if (mode_ == Mode::priority) {
    ready_ranks_[place_[thread] / 64] |= uint64_t{1} << place_[thread] % 64;
  } else {
    place_[thread] = static_cast<int>(order_.size());
    order_.push_back(thread);
  }
}

void Schedule::set_waiting(int thread) {
  ready_[thread / 32] &= ~(1u << thread % 32);
  if (mode_ == Mode::priority) {
    ready_ranks_[place_[thread] / 64] &= ~(uint64_t{1} << place_[thread] % 64);
    return;
  }
  if (mode_ == Mode::last) {  // it may have readied others before it waits
    order_.erase(order_.begin() + place_[thread]);
    for (size_t i = place_[thread]; i < order_.size(); ++i) place_[order_[i]] = static_cast<int>(i);
    return;
  }
  const int moved = order_.back();
  order_[place_[thread]] = moved;
  place_[moved] = place_[thread];
  order_.pop_back();
}

int Schedule::any_ready() { return order_.empty() ? -1 : order_[random_.below(static_cast<int>(order_.size()))]; }

int Schedule::any_of_warp(int warp) {
  uint32_t lanes = ready_[warp];
  for (int skip = random_.below(std::popcount(lanes)); skip > 0; --skip) lanes &= lanes - 1;
  return warp * 32 + std::countr_zero(lanes);
}

int Schedule::next(int current) {
  switch (mode_) {
    case Mode::uniform: return any_ready();
    case Mode::warp: {
      const int thread = current >= 0 && ready_[current / 32] != 0 ? current : any_ready();
      return thread < 0 ? -1 : any_of_warp(thread / 32);
    }
    case Mode::last: return order_.empty() ? -1 : order_.back();
    case Mode::priority:
      if (current >= 0 && is_ready(current) && random_.below(kChange) == 0) {
        const int rank = place_[current], other_rank = random_.below(count_), other = order_[other_rank];
        if (!is_ready(other)) {
          ready_ranks_[rank / 64] &= ~(uint64_t{1} << rank % 64);
          ready_ranks_[other_rank / 64] |= uint64_t{1} << other_rank % 64;
        }
        std::swap(order_[rank], order_[other_rank]);
        place_[current] = other_rank;
        place_[other] = rank;
      }
      for (size_t i = 0; i < ready_ranks_.size(); ++i) {
        if (ready_ranks_[i] != 0) return order_[i * 64 + std::countr_zero(ready_ranks_[i])];
      }
      return -1;
  }
  return -1;
}

}  // namespace segops::simt
