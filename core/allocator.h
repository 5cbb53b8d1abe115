#pragma once
// The arena under every tensor: one reserved address range from which blocks are carved, split and joined. Freed memory is
// kept and used again, because the first touch of a fresh page costs far more than writing to a known one.

#include <rewind/core/namespace.h>

#include <cstddef>
#include <cstdint>

namespace rewind_lib {

class Arena {
 public:
  /// Reserves (does not use) `reserve` bytes of address space, fewer when the system refuses.
  explicit Arena(std::size_t reserve);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  static constexpr std::size_t alignment = 64;
  /// Granule of residency: a huge page.
  static constexpr std::size_t chunk = std::size_t{2} << 20;

  /// 64-byte aligned memory of at least `bytes`, or nullptr when the range is used up.
  void* allocate(std::size_t bytes);
  void deallocate(void* data);

  /// Bytes in chunks that have been touched and not been given back.
  std::size_t resident() const { return resident_; }
  /// Gives whole free chunks back to the system until resident() <= target or none are left.
  void purge(std::size_t target);
  /// Fails a REWIND_CHECK when blocks do not tile the range, or bins and flags disagree. For tests.
  void check() const;

 private:
  struct Block;
  static constexpr int fine_bits = 4, fine = 1 << fine_bits, coarse = 48;

  static int bin_of(std::size_t bytes);
  Block* find(std::size_t bytes);
  void link(Block* block);
  void unlink(Block* block);
  Block* next(Block* block) const;
  void touch(const std::byte* begin, const std::byte* end);
  void release_chunks(const std::byte* begin, const std::byte* end, std::size_t target);

  std::byte* base_ = nullptr;
  std::size_t reserved_ = 0;
  std::byte* top_ = nullptr;   // blocks tile [base_, top_); everything above is untouched or free
  Block* last_ = nullptr;      // the block that ends at top_
  std::byte* high_ = nullptr;  // the highest top_ so far
  std::size_t resident_ = 0;
  std::uint8_t* touched_ = nullptr;  // a flag a chunk
  Block* bins_[coarse * fine] = {};
  std::uint64_t occupied_[coarse * fine / 64] = {};
};

}  // namespace rewind_lib
