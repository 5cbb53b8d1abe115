// The entry point of every test program. Two threads, whatever the machine has: what a step takes grows with them, and some tests
// have budgets in bytes. REWIND_NUM_THREADS says otherwise.
#include <rewind/core/parallel.h>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>

int main(int argc, char** argv) {
  if (std::getenv("REWIND_NUM_THREADS") == nullptr) rewind::parallel::set_threads(2);
  return doctest::Context(argc, argv).run();
}
