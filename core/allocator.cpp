#include <rewind/core/allocator.h>
#include <rewind/core/error.h>

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <utility>

namespace rewind_lib {

Arena::Arena(std::size_t reserve) {
  reserve = (reserve + chunk - 1) / chunk * chunk;
  for (; reserve >= chunk; reserve = reserve / 2 / chunk * chunk) {
    // One chunk more than asked for, so that the range can begin on a chunk.
    void* range = mmap(nullptr, reserve + chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) continue;
    touched_ = static_cast<std::uint32_t*>(std::calloc(reserve / chunk, sizeof(std::uint32_t)));
    if (touched_ == nullptr) {
      munmap(range, reserve + chunk);
      continue;
    }
    const auto address = reinterpret_cast<std::uintptr_t>(range);
    const std::size_t skip = (chunk - address % chunk) % chunk;
    if (skip > 0) munmap(range, skip);
    if (skip < chunk) munmap(static_cast<std::byte*>(range) + skip + reserve, chunk - skip);
    base_ = top_ = high_ = static_cast<std::byte*>(range) + skip;
    reserved_ = reserve;
    madvise(base_, reserved_, MADV_HUGEPAGE);
    return;
  }
}

Arena::~Arena() {
  if (base_ != nullptr) munmap(base_, reserved_);
  std::free(touched_);
}

// Bins are `fine` steps between powers of two: a block of b bytes is in bin_of(b), and every block of a higher bin is larger.
int Arena::bin_of(std::size_t bytes) {
  const std::size_t units = bytes / alignment;
  const int log = static_cast<int>(std::bit_width(units)) - 1;
  if (log < fine_bits) return static_cast<int>(units);
  const int step = static_cast<int>((units >> (log - fine_bits)) & (fine - 1));
  return std::min((log - fine_bits + 1) * fine + step, coarse * fine - 1);
}

void Arena::link(Block* block) {
  const int bin = bin_of(block->size);
  block->free = true;
  block->bin_previous = nullptr;
  block->bin_next = bins_[bin];
  if (bins_[bin] != nullptr) bins_[bin]->bin_previous = block;
  bins_[bin] = block;
  occupied_[bin / 64] |= std::uint64_t{1} << (bin % 64);
}

void Arena::unlink(Block* block) {
  const int bin = bin_of(block->size);
  if (block->bin_next != nullptr) block->bin_next->bin_previous = block->bin_previous;
  if (block->bin_previous != nullptr) {
    block->bin_previous->bin_next = block->bin_next;
  } else {
    bins_[bin] = block->bin_next;
    if (bins_[bin] == nullptr) occupied_[bin / 64] &= ~(std::uint64_t{1} << (bin % 64));
  }
  block->free = false;
}

// Makes one of a block and the next. Both are in no bin.
void Arena::join_next(Block* block) {
  Block* after = block->next;
  block->size += after->size;
  block->next = after->next;
  (block->next != nullptr ? block->next->previous : last_) = block;
  records_.give(after);
}

// Best fit: the smallest block of the first bin that holds one large enough. Ties go to the lower address, which keeps
// the top of the range free.
Arena::Block* Arena::find(std::size_t bytes) {
  int bin = bin_of(bytes);
  while (true) {
    Block* best = nullptr;
    for (Block* b = bins_[bin]; b != nullptr; b = b->bin_next)
      if (b->size >= bytes && (best == nullptr || b->size < best->size || (b->size == best->size && b->data < best->data)))
        best = b;
    if (best != nullptr) return best;
    int word = ++bin / 64;
    if (word >= coarse * fine / 64) return nullptr;
    std::uint64_t bits = occupied_[word] & (~std::uint64_t{0} << (bin % 64));
    while (bits == 0) {
      if (++word == coarse * fine / 64) return nullptr;
      bits = occupied_[word];
    }
    bin = word * 64 + std::countr_zero(bits);
  }
}

// The granules of chunk c that meet [from, to), which are offsets into the range.
std::uint32_t Arena::granules_of(std::size_t c, std::size_t from, std::size_t to) {
  const std::size_t first = (std::max(from, c * chunk) - c * chunk) / granule;
  const std::size_t last = (std::min(to, (c + 1) * chunk) - c * chunk - 1) / granule;
  return (~std::uint32_t{0} << first) & (~std::uint32_t{0} >> (31 - last));
}

// What is touched of chunk c once [from, to) is. The first touch of a chunk takes a huge page, where the system has one.
std::uint32_t Arena::touched_with(std::size_t c, std::size_t from, std::size_t to) const {
  return touched_[c] == 0 ? ~std::uint32_t{0} : touched_[c] | granules_of(c, from, to);
}

// Bytes that become resident with [from, to).
std::size_t Arena::untouched(std::size_t from, std::size_t to) const {
  std::size_t bytes = 0;
  for (std::size_t c = from / chunk; c * chunk < to; ++c)
    bytes += granule * static_cast<std::size_t>(std::popcount(touched_with(c, from, to) ^ touched_[c]));
  return bytes;
}

// Calls f(first byte, bytes) for each run of granules of chunk c.
template <class F>
void Arena::for_runs(std::size_t c, std::uint32_t granules, F f) const {
  while (granules != 0) {
    const int first = std::countr_zero(granules), count = std::countr_one(granules >> first);
    f(base_ + c * chunk + static_cast<std::size_t>(first) * granule, static_cast<std::size_t>(count) * granule);
    granules &= count == 32 ? 0 : ~(((std::uint32_t{1} << count) - 1) << first);
  }
}

// Call before [begin, end) is written to for the first time: once its pages are touched, the process's peak has happened. The range
// is in no bin and below top_.
void Arena::make_resident(const std::byte* begin, const std::byte* end, std::size_t allowed) {
  const auto from = static_cast<std::size_t>(begin - base_), to = static_cast<std::size_t>(end - base_);
  std::size_t more = untouched(from, to);
  if (more == 0) return;
  if (resident_ + more > allowed) {
    move_to(from, to, resident_ + more - allowed);
    more = untouched(from, to);
    if (resident_ + more > allowed) purge(allowed - std::min(more, allowed));
  }
  // The purge may have taken other parts of the same chunks, so that what comes is counted anew.
  resident_ += untouched(from, to);
  for (std::size_t c = from / chunk; c * chunk < to; ++c) {
    const std::uint32_t before = std::exchange(touched_[c], touched_with(c, from, to));
    // Parts of a chunk come in small pages, which cost less when they are asked for at once.
    if (before != 0)
      for_runs(c, touched_[c] & ~before, [](std::byte* at, std::size_t bytes) { madvise(at, bytes, MADV_POPULATE_WRITE); });
  }
}

Arena::Block* Arena::allocate(std::size_t bytes, std::size_t allowed) {
  // A unit more than asked for: tensors of 2^n bytes that lie one behind the other would else share their cache sets, place by
  // place.
  const std::size_t size = alignment + (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  Block* block = find(size);
  Block* record = nullptr;  // of the rest, or of a new block
  if (block == nullptr || block->size - size >= 2 * alignment) {
    record = records_.take();
    if (record == nullptr) return nullptr;
  }
  if (block != nullptr) {
    unlink(block);
    if (record != nullptr) {
      *record = {block->data + size, block->size - size, block, block->next, nullptr, nullptr, true};
      block->next->previous = record;  // a free block is never the last
      block->size = size;
      block->next = record;
      link(record);
    }
  } else {
    if (base_ == nullptr || size > static_cast<std::size_t>(base_ + reserved_ - top_)) {
      records_.give(record);
      return nullptr;
    }
    block = record;
    *block = {top_, size, last_, nullptr, nullptr, nullptr, false};
    if (last_ != nullptr) last_->next = block;
    last_ = block;
    top_ += size;
    high_ = std::max(high_, top_);
  }
  make_resident(block->data, block->data + block->size, allowed);
  return block;
}

void Arena::deallocate(Block* block) {
  if (Block* after = block->next; after != nullptr && after->free) {
    unlink(after);
    join_next(block);
  }
  if (Block* before = block->previous; before != nullptr && before->free) {
    unlink(before);
    join_next(before);
    block = before;
  }
  if (block != last_) return link(block);
  last_ = block->previous;
  if (last_ != nullptr) last_->next = nullptr;
  top_ = block->data;
  records_.give(block);
}

// Calls f(from, to), offsets into the range, for what is free: above the top, then blocks that may hold `least` bytes, from the
// largest. Ends when f says false.
template <class F>
void Arena::for_free(std::size_t least, F f) const {
  const auto high = static_cast<std::size_t>(high_ - base_);
  if (!f(static_cast<std::size_t>(top_ - base_), (high + chunk - 1) / chunk * chunk)) return;
  for (int bin = coarse * fine - 1; bin >= bin_of(least); --bin)
    for (const Block* b = bins_[bin]; b != nullptr; b = b->bin_next) {
      const auto from = static_cast<std::size_t>(b->data - base_);
      if (!f(from, from + b->size)) return;
    }
}

// Moves the pages of free chunks under the untouched chunks of [from, to), until `bytes` fewer become resident with it. Given back,
// they would be cleared anew, at each step that repeats (docs/performance.md).
void Arena::move_to(std::size_t from, std::size_t to, std::size_t bytes) {
  std::size_t d = from / chunk;
  for_free(chunk, [&](std::size_t begin, std::size_t end) {
    for (std::size_t c = (begin + chunk - 1) / chunk; (c + 1) * chunk <= end; ++c) {
      if (touched_[c] != ~std::uint32_t{0}) continue;
      while (d * chunk < to && touched_[d] != 0) ++d;
      if (d * chunk >= to || bytes == 0 || !move(c, d)) return false;
      bytes -= std::min(bytes, chunk);
    }
    return true;
  });
}

bool Arena::move(std::size_t c, std::size_t d) {
  std::byte *const from = base_ + c * chunk, *const to = base_ + d * chunk;
  if (mremap(from, chunk, chunk, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == MAP_FAILED) {
    // An older system, or no more of its records of mappings. It may have unmapped what was there before it found out.
    REWIND_CHECK(mmap(to, chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == to);
    madvise(to, chunk, MADV_HUGEPAGE);
    return false;
  }
  touched_[d] = std::exchange(touched_[c], 0);
  return true;
}

void Arena::give_back(std::size_t unit, std::size_t target) {
  for_free(unit, [&](std::size_t from, std::size_t to) {
    from = (from + unit - 1) / unit * unit;
    to = to / unit * unit;
    for (std::size_t c = from / chunk; c * chunk < to && resident_ > target; ++c) {
      const std::uint32_t going = touched_[c] & granules_of(c, from, to);
      touched_[c] &= ~going;
      resident_ -= granule * static_cast<std::size_t>(std::popcount(going));
      for_runs(c, going, [](std::byte* at, std::size_t bytes) { madvise(at, bytes, MADV_DONTNEED); });
    }
    return resident_ > target;
  });
}

void Arena::purge(std::size_t target) {
  give_back(chunk, target);    // keeps huge pages whole
  give_back(granule, target);  // holes that no chunk fits into
}

void Arena::check() const {
  const std::byte* at = base_;
  const Block* first = last_;
  while (first != nullptr && first->previous != nullptr) first = first->previous;
  const Block* previous = nullptr;
  std::size_t free_blocks = 0;
  for (const Block* block = first; block != nullptr; block = block->next) {
    REWIND_CHECK(block->data == at && block->size >= 2 * alignment && block->size % alignment == 0);
    REWIND_CHECK(block->previous == previous);
    REWIND_CHECK(!(block->free && previous != nullptr && previous->free));
    free_blocks += block->free ? 1 : 0;
    previous = block;
    at += block->size;
  }
  REWIND_CHECK(at == top_ && previous == last_);
  REWIND_CHECK(last_ == nullptr || !last_->free);
  std::size_t binned = 0;
  for (int bin = 0; bin < coarse * fine; ++bin) {
    REWIND_CHECK((bins_[bin] != nullptr) == ((occupied_[bin / 64] >> (bin % 64) & 1) != 0));
    for (const Block* b = bins_[bin]; b != nullptr; b = b->bin_next, ++binned) REWIND_CHECK(b->free && bin_of(b->size) == bin);
  }
  REWIND_CHECK(binned == free_blocks);
}

}  // namespace rewind_lib
