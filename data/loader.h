#pragma once
// The loader: shuffles, batches, and prepares the next batch on a thread of its own while the current one computes.
//
//     data::DataLoader loader{train, {.batch = 64, .shuffle = true, .seed = 1}};
//     for (auto [x, y] : loader) ...   // one loop is one epoch
//
// Memory is taken up front: two batches (Category::input), filled in turns and handed out as tensors that share them.
// A batch that is still held when its memory is due again, by you or by a tape that saved it, is never written to; the
// loader takes other memory in its place. It does so on your thread, at the same step in every run, so peaks repeat.

#include <rewind/data/dataset.h>

namespace rewind_lib::data {

struct LoaderOptions {
  std::int64_t batch = 64;
  bool shuffle = false;  ///< a new order every epoch, which depends on seed and epoch alone
  std::uint64_t seed = 0;
  bool drop_last = false;  ///< leave out a last batch that is not full
};

/// Where samples come from. Derive from it for data that does not lie in memory, or that changes on the way.
class Source {
 public:
  struct Layout {
    std::int64_t samples = 0;
    Shape x;       ///< of one sample
    Shape y = {};  ///< of one target
    DType x_dtype = float32;
    DType y_dtype = int64;
  };

  virtual ~Source() = default;
  virtual Layout layout() const = 0;
  /// Writes the samples `rows` (numbers below samples) into `out`, x [rows, ...] and y [rows, ...]. It runs on the loader's
  /// thread: allocate no tensors and call no ops there. What it throws reaches the loop that waits for the batch.
  virtual void read(std::span<const std::int64_t> rows, const Batch& out) = 0;
};

class DataLoader {
 public:
  /// Throws Error when there is no batch to give: no samples, batch < 1, or drop_last with fewer samples than a batch.
  explicit DataLoader(Dataset dataset, const LoaderOptions& options = {});
  /// x [samples, ...] and y [samples, ...], of any dtypes.
  DataLoader(Tensor x, Tensor y, const LoaderOptions& options = {});
  /// `source` is not copied and has to live as long as the loader.
  explicit DataLoader(Source& source, const LoaderOptions& options = {});
  DataLoader(DataLoader&& other) noexcept;
  DataLoader& operator=(DataLoader&& other) noexcept;
  ~DataLoader();

  std::int64_t samples() const;
  /// Batches an epoch.
  std::int64_t batches() const;
  /// The number of the epoch that the next loop will be. Set it to go on where another run stopped.
  std::int64_t epoch() const;
  void set_epoch(std::int64_t epoch);

 private:
  struct Impl;

 public:
  struct End {};
  class Iterator {
   public:
    using value_type = Batch;
    using difference_type = std::ptrdiff_t;

    Batch operator*() const;
    Iterator& operator++();
    void operator++(int) { ++*this; }
    friend bool operator==(const Iterator& at, End) { return at.ended(); }

   private:
    friend class DataLoader;
    Iterator(Impl* loader, std::uint64_t loop) : loader_(loader), loop_(loop) {}
    bool ended() const;

    Impl* loader_;
    std::uint64_t loop_;
  };

  /// Begins an epoch, and ends the one that a loop may have left early. In a dry run epochs are not counted.
  Iterator begin();
  End end() const { return {}; }

 private:
  Impl& impl() const;

  Impl* impl_;
};

}  // namespace rewind_lib::data
