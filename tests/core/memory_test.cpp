// The ledger, the limit, and the arena under them.

#include <rewind/core/allocator.h>
#include <rewind/core/memory.h>
#include <rewind/core/random.h>
#include <rewind/core/tensor.h>

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace rw = rewind;
namespace memory = rewind::memory;
using rw::Category;
using rw::Tensor;

TEST_CASE("live and peak bytes follow allocations, by category") {
  const auto before = memory::live();
  memory::Scope scope;
  {
    Tensor a = rw::empty({1000});
    const memory::CategoryScope parameters(Category::parameter);
    Tensor b = rw::empty({10}, rw::float64);
    CHECK(memory::live()[Category::activation] == before[Category::activation] + 4000);
    CHECK(memory::live()[Category::parameter] == before[Category::parameter] + 80);
    b.set_category(Category::gradient);
    CHECK(memory::live()[Category::gradient] == before[Category::gradient] + 80);
    CHECK(memory::live()[Category::parameter] == before[Category::parameter]);
  }
  CHECK(memory::live() == before);
  CHECK(scope.peak().total == before.total + 4080);
  CHECK(scope.at_peak()[Category::activation] == before[Category::activation] + 4000);
}

TEST_CASE("a scope measures by itself and leaves the peak outside it right") {
  memory::reset_peak();
  { Tensor big = rw::empty({100000}); }
  const std::size_t outer = memory::peak().total;
  {
    memory::Scope scope;
    Tensor small = rw::empty({10});
    CHECK(scope.peak().total == scope.before().total + 40);
  }
  CHECK(memory::peak().total == outer);
}

TEST_CASE("the timeline records every change in order") {
  memory::start_timeline();
  const std::size_t base = memory::live().total;
  { Tensor a = rw::empty({4}); }
  const auto events = memory::stop_timeline();
  REQUIRE(events.size() == 2);
  CHECK(events[0].delta == 16);
  CHECK(events[0].total == base + 16);
  CHECK(events[1].delta == -16);
  { Tensor a = rw::empty({4}); }
  CHECK(memory::stop_timeline().empty());
}

TEST_CASE("the limit refuses, names totals and the largest tensors, and leaves everything usable") {
  Tensor a = rw::empty({1 << 20}), b = rw::empty({1 << 18});
  memory::set_limit(memory::live().total + (1 << 16));
  std::string text;
  try {
    rw::empty({1 << 15});
  } catch (const rw::OutOfMemory& e) {
    text = e.what();
  }
  CHECK(text.find("needs 131072 bytes") != text.npos);
  CHECK(text.find("activation") != text.npos);
  CHECK(text.find("Largest live tensors: 4.2 MB activation, 1.0 MB activation") != text.npos);
  const auto live = memory::live();
  Tensor c = rw::empty({1 << 13});
  CHECK(memory::live().total == live.total + (1 << 15));
  memory::set_limit(0);
  Tensor d = rw::empty({1 << 20});
}

TEST_CASE("the n-th allocation fails on request, once") {
  memory::fail_at(2);
  Tensor a = rw::empty({1});
  CHECK_THROWS_AS(rw::empty({1}), rw::OutOfMemory);
  Tensor b = rw::empty({1});
}

TEST_CASE("sizes print in decimal units") {
  CHECK(memory::human(999) == "999 B");
  CHECK(memory::human(1234567) == "1.2 MB");
  CHECK(memory::human(2000000000) == "2.0 GB");
}

TEST_CASE("the report lists every category and the total") {
  const std::string text = memory::report();
  for (const char* name : {"parameter", "gradient", "optimizer_state", "activation", "input", "workspace", "total"})
    CHECK(text.find(name) != text.npos);
}

TEST_CASE("tensors may be made and dropped on several threads at once") {
  const auto before = memory::live();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([] {
      for (int i = 0; i < 2000; ++i) {
        Tensor a = rw::empty({i});
        Tensor b = a;
        a = rw::empty({i / 2 + 1});
      }
    });
  for (auto& t : threads) t.join();
  CHECK(memory::live() == before);
}

static char* bytes_of(const rw::Arena::Block* block) { return reinterpret_cast<char*>(block->data); }

TEST_CASE("arena blocks are aligned, do not overlap, and join again when freed") {
  rw::Arena arena(std::size_t{1} << 30);
  struct Piece {
    rw::Arena::Block* block;
    std::size_t bytes;
    unsigned char mark;
    unsigned char* data() const { return reinterpret_cast<unsigned char*>(block->data); }
  };
  std::vector<Piece> blocks;
  std::vector<std::int32_t> numbers(60000);
  rw::random::fill_permutation(numbers.data(), 60000, 7, 0);
  for (std::size_t step = 0; step < numbers.size(); ++step) {
    const auto r = static_cast<std::size_t>(numbers[step]);
    if (r % 5 < 3 || blocks.empty()) {
      const std::size_t bytes = r % 11 == 0 ? r * 7 : r % 900;
      const Piece p{arena.allocate(bytes), bytes, static_cast<unsigned char>(step)};
      REQUIRE(p.block != nullptr);
      REQUIRE(reinterpret_cast<std::uintptr_t>(p.data()) % rw::Arena::alignment == 0);
      std::fill(p.data(), p.data() + bytes, p.mark);
      blocks.push_back(p);
    } else {
      const std::size_t i = r % blocks.size();
      const Piece p = blocks[i];
      REQUIRE(std::all_of(p.data(), p.data() + p.bytes, [&](unsigned char c) { return c == p.mark; }));
      arena.deallocate(p.block);
      blocks[i] = blocks.back();
      blocks.pop_back();
    }
    if (step % 5000 == 0) arena.check();
  }
  for (const Piece& p : blocks) arena.deallocate(p.block);
  arena.check();
  const std::size_t resident = arena.resident();
  CHECK(resident > 0);
  rw::Arena::Block* all = arena.allocate(resident - 1000);  // everything joined: one block fits where all were
  CHECK(arena.resident() == resident);
  arena.deallocate(all);
  arena.purge(0);
  CHECK(arena.resident() == 0);
  arena.check();
}

TEST_CASE("an arena that is used up says so with a null pointer and goes on") {
  rw::Arena arena(rw::Arena::chunk);
  CHECK(arena.allocate(3 * rw::Arena::chunk) == nullptr);
  rw::Arena::Block* a = arena.allocate(1000);
  CHECK(a != nullptr);
  arena.deallocate(a);
  arena.check();
}

TEST_CASE("an allocation gives free memory back first where more would be resident than allowed, holes below a chunk too") {
  rw::Arena arena(std::size_t{1} << 28);
  constexpr std::size_t hole = rw::Arena::chunk / 2, wall = 3 * rw::Arena::chunk / 4;
  std::vector<rw::Arena::Block*> holes;
  std::vector<char*> walls;
  for (int i = 0; i < 32; ++i) {
    holes.push_back(arena.allocate(hole));
    walls.push_back(bytes_of(arena.allocate(wall)));
    std::fill_n(bytes_of(holes.back()), hole, 1);
    std::fill_n(walls.back(), wall, 2);
  }
  for (rw::Arena::Block* h : holes) arena.deallocate(h);
  const std::size_t full = arena.resident();
  constexpr std::size_t bytes = 4 * rw::Arena::chunk;
  char* large = bytes_of(arena.allocate(bytes, full));
  CHECK(arena.resident() <= full);
  CHECK(arena.resident() > full - rw::Arena::chunk);  // and no more of it than needed
  std::fill_n(large, bytes, 3);
  for (char* w : walls) CHECK(std::all_of(w, w + wall, [](char c) { return c == 2; }));
  // What cannot be helped is resident all the same.
  CHECK(arena.allocate(bytes, 0) != nullptr);
  arena.check();
}

TEST_CASE("free chunks come over instead of being given back and cleared anew") {
  rw::Arena arena(std::size_t{1} << 28);
  constexpr std::size_t bytes = 8 * rw::Arena::chunk;
  rw::Arena::Block *a = arena.allocate(bytes), *b = arena.allocate(bytes);
  std::fill_n(bytes_of(a), bytes, 7);
  std::fill_n(bytes_of(b), bytes, 8);
  arena.deallocate(a);
  const std::size_t full = arena.resident();
  // Too large for where a was, so that it begins behind b.
  rw::Arena::Block* c = arena.allocate(bytes + rw::Arena::chunk, full);
  char* in_c = bytes_of(c);
  REQUIRE(in_c > bytes_of(b));
  CHECK(arena.resident() >= full);
  CHECK(arena.resident() <= full + 2 * rw::Arena::chunk);  // a ends within a chunk, and so does c
  CHECK(std::all_of(bytes_of(b), bytes_of(b) + bytes, [](char v) { return v == 8; }));
  // What comes over is not cleared. Linux before 5.7 cannot move pages, and gives them back.
  const auto moved = std::count(in_c, in_c + bytes + rw::Arena::chunk, 7);
  const bool can = [] {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void *from = mmap(nullptr, 4096, PROT_READ, flags, -1, 0), *to = mmap(nullptr, 4096, PROT_READ, flags, -1, 0);
    return mremap(from, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to;
  }();
  CHECK(static_cast<std::size_t>(moved) >= (can ? 6 * rw::Arena::chunk : 0));
  // Where they were, there is memory all the same.
  rw::Arena::Block* d = arena.allocate(bytes);
  CHECK(d->data < b->data);
  std::fill_n(bytes_of(d), bytes, 9);
  CHECK(std::count(in_c, in_c + bytes + rw::Arena::chunk, 7) == moved);
  arena.check();
}

TEST_CASE("free chunks in the middle go back to the system and come again") {
  rw::Arena arena(std::size_t{1} << 28);
  constexpr std::size_t bytes = 8 * rw::Arena::chunk;
  rw::Arena::Block *a = arena.allocate(bytes), *b = arena.allocate(bytes);
  char *in_a = bytes_of(a), *in_b = bytes_of(b);
  in_a[rw::Arena::chunk] = in_b[0] = 1;
  arena.deallocate(a);
  const std::size_t full = arena.resident();
  arena.purge(0);
  CHECK(arena.resident() < full - 6 * rw::Arena::chunk);
  CHECK(in_b[0] == 1);
  rw::Arena::Block* c = arena.allocate(bytes);
  CHECK(bytes_of(c) == in_a);
  CHECK(arena.resident() <= full);
  CHECK(arena.resident() > full - rw::Arena::chunk);
  CHECK(in_a[rw::Arena::chunk] == 0);  // a fresh page
  arena.deallocate(b);
  arena.deallocate(c);
}
