#pragma once
// Sets the number of threads while alive.

#include <rewind/core/parallel.h>

class Threads {
 public:
  explicit Threads(int n) : saved_(rewind::parallel::threads()) { rewind::parallel::set_threads(n); }
  ~Threads() { rewind::parallel::set_threads(saved_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int saved_;
};
