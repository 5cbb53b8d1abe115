#pragma once
// The arena under every tensor: one reserved address range from which blocks are carved, split and joined. Freed memory is
// kept and used again, because the first touch of a fresh page costs far more than writing to a known one.

#include <rewind/core/records.h>

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
  /// A huge page: what the first touch of an untouched range makes resident, and what is given back first.
  static constexpr std::size_t chunk = std::size_t{2} << 20;
  /// The least that is given back, where whole chunks are not enough.
  static constexpr std::size_t granule = chunk / 32;

  /// A part of the range. These records lie apart from the bytes and close together: in front of the bytes, each of them would be
  /// a line fetched from memory whenever a neighbour is allocated or freed.
  struct alignas(64) Block {
    std::byte* data;
    std::size_t size;        // a multiple of alignment
    Block *previous, *next;  // that end where this begins, and the other way round
    Block *bin_previous, *bin_next;
    bool free;
  };

  /// 64-byte aligned memory of at least `bytes`, or nullptr when the range is used up or there is no memory for a record. If this
  /// would make more than `allowed` bytes resident, pages of free blocks are first moved here or given back to the system, as far
  /// as there are any.
  Block* allocate(std::size_t bytes, std::size_t allowed = ~std::size_t{0});
  void deallocate(Block* block);

  /// Bytes that have been touched and not been given back.
  std::size_t resident() const { return resident_; }
  /// Gives free memory back to the system until resident() <= target or none is left: whole chunks, then granules.
  void purge(std::size_t target);
  /// Fails a REWIND_CHECK when blocks do not tile the range, or bins and flags disagree. For tests.
  void check() const;

 private:
  static constexpr int fine_bits = 4, fine = 1 << fine_bits, coarse = 48;

  static int bin_of(std::size_t bytes);
  Block* find(std::size_t bytes);
  void link(Block* block);
  void unlink(Block* block);
  void join_next(Block* block);
  static std::uint32_t granules_of(std::size_t c, std::size_t from, std::size_t to);
  template <class F>
  void for_runs(std::size_t c, std::uint32_t granules, F f) const;
  std::uint32_t touched_with(std::size_t c, std::size_t from, std::size_t to) const;
  std::size_t untouched(std::size_t from, std::size_t to) const;
  void make_resident(const std::byte* begin, const std::byte* end, std::size_t allowed);
  template <class F>
  void for_free(std::size_t least, F f) const;
  void move_to(std::size_t from, std::size_t to, std::size_t bytes);
  bool move(std::size_t c, std::size_t d);
  void give_back(std::size_t unit, std::size_t target);

  std::byte* base_ = nullptr;
  std::size_t reserved_ = 0;
  std::byte* top_ = nullptr;   // blocks tile [base_, top_); everything above is untouched or free
  Block* last_ = nullptr;      // the block that ends at top_
  std::byte* high_ = nullptr;  // the highest top_ so far
  std::size_t resident_ = 0;
  std::uint32_t* touched_ = nullptr;  // a bit a granule, a word a chunk
  Records<Block> records_;
  Block* bins_[coarse * fine] = {};
  std::uint64_t occupied_[coarse * fine / 64] = {};
};

}  // namespace rewind_lib
