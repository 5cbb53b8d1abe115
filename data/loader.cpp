#include <rewind/core/random.h>
#include <rewind/data/loader.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

namespace rewind_lib::data {
namespace {

class DatasetSource final : public Source {
 public:
  explicit DatasetSource(Dataset dataset) : dataset_(std::move(dataset)) { dataset_.check(); }

  Layout layout() const override {
    const Shape& s = dataset_.shape;
    return {.samples = s[0], .x = {s[1], s[2], s[3]}};
  }
  void read(std::span<const std::int64_t> rows, const Batch& out) override { dataset_.read(rows, out); }

 private:
  Dataset dataset_;
};

class TensorSource final : public Source {
 public:
  TensorSource(Tensor x, Tensor y) : x_(std::move(x)), y_(std::move(y)) {
    if (x_.rank() == 0 || y_.rank() == 0 || x_.size(0) != y_.size(0))
      fail(str("DataLoader: x ", x_.shape(), " and y ", y_.shape(), " are to agree in their first axis, the samples"));
  }

  Layout layout() const override { return {x_.size(0), sample(x_), sample(y_), x_.dtype(), y_.dtype()}; }
  void read(std::span<const std::int64_t> rows, const Batch& out) override {
    gather(x_, rows, out.x);
    gather(y_, rows, out.y);
  }

 private:
  static Shape sample(const Tensor& t) { return Shape(std::span(t.shape().begin() + 1, t.shape().end())); }

  static void gather(const Tensor& from, std::span<const std::int64_t> rows, Tensor to) {
    visit_dtype(from.dtype(), [&](auto zero) {
      using T = decltype(zero);
      const T* source = from.values<T>().data();
      T* target = to.mutate<T>().data();
      const std::int64_t row = from.numel() / from.size(0);
      for (const std::int64_t r : rows) target = std::copy_n(source + r * row, row, target);
    });
  }

  Tensor x_, y_;
};

// Labels the loader's allocations in out-of-memory errors and timelines, and counts them as input.
struct Allocating {
  LocationScope op{&Location::op, "DataLoader"}, module{&Location::module, ""};
  memory::CategoryScope category{Category::input};
};

Shape with_samples(std::int64_t n, const Shape& sample) {
  Shape shape{n};
  for (const std::int64_t extent : sample) shape.push_back(extent);
  return shape;
}

// Free to be written to: nobody else holds it, and it is not left over from a dry run.
bool reusable(const Tensor& slot) {
  const Storage* s = slot.impl().storage;
  return s->refs.one() && !is_stale(*s);
}

// Streams of random numbers that others draw from the same seed are not to be ours.
constexpr std::uint64_t stream = 0x6c6f6164'00000000;

}  // namespace

// Who touches what: the loop's thread everything, but for `job` and `rows` while `state` is requested, which then are the
// worker's. The worker owns no tensors, so all memory comes and goes on the loop's thread.
struct DataLoader::Impl {
  Impl(std::unique_ptr<Source> own, Source& from, const LoaderOptions& o)
      : owned(std::move(own)), source(from), options(o), layout(from.layout()) {
    const std::int64_t n = layout.samples;
    if (o.batch < 1) fail(str("DataLoader: batch is ", o.batch, "; it is to be at least 1"));
    if (n < 1) fail("DataLoader: there are no samples");
    if (o.drop_last && n < o.batch)
      fail(str("DataLoader: ", n, " samples fill no batch of ", o.batch, ", and drop_last leaves out the one that is not full"));
    batches = o.drop_last ? n / o.batch : (n - 1) / o.batch + 1;

    const Allocating scope;
    order = arange(n, int64);
    for (int i = 0; i < std::min<std::int64_t>(batches, 2); ++i) slots[i] = allocate();
  }
  ~Impl() {
    if (!worker.joinable()) return;
    {
      const std::lock_guard guard(mutex);
      stop = true;
    }
    changed.notify_all();
    worker.join();
  }

  Batch allocate() const {
    const std::int64_t n = std::min(options.batch, layout.samples);
    return {empty(with_samples(n, layout.x), layout.x_dtype), empty(with_samples(n, layout.y), layout.y_dtype)};
  }

  void begin() {
    finish();
    job = current = {};
    ++loop;
    position = batches;  // until the first batch is there
    const bool dry = DryLedger::active();
    {
      const Allocating scope;
      if (!reusable(order)) order = arange(layout.samples, int64);
    }
    if (options.shuffle && order.raw<std::int64_t>() != nullptr) {
      const auto words = (random::permutation_words(layout.samples) + 63) / 64 * 64;
      random::fill_permutation(order.raw<std::int64_t>(), layout.samples, options.seed ^ stream,
                               static_cast<std::uint64_t>(epoch) * words);
    }
    if (!dry) ++epoch;
    request(0);
    advance(0);
  }

  // Makes `next` the current batch, and has the one after it prepared. After an exception the loop is over.
  void advance(std::int64_t next) {
    position = batches;
    current = {};
    if (next == batches) return;
    current = collect();
    if (next + 1 < batches) request(next + 1);
    position = next;
  }

  void request(std::int64_t number) {
    Batch& slot = slots[number % 2];
    {
      const Allocating scope;
      const bool keep_x = reusable(slot.x), keep_y = reusable(slot.y);
      if (!keep_x) slot.x = empty(slot.x.shape(), layout.x_dtype);
      if (!keep_y) slot.y = empty(slot.y.shape(), layout.y_dtype);
    }
    const std::int64_t first = number * options.batch, n = std::min(options.batch, layout.samples - first);
    Batch batch{view_rows(slot.x, 0, n), view_rows(slot.y, 0, n)};
    const bool dry = DryLedger::active() || order.raw<std::int64_t>() == nullptr || slot.x.raw<std::byte>() == nullptr ||
                     slot.y.raw<std::byte>() == nullptr;
    if (!dry && !worker.joinable()) worker = std::thread([this] { work(); });
    const std::lock_guard guard(mutex);
    job = std::move(batch);
    if (dry) {
      state = State::ready;
      return;
    }
    rows = order.values<std::int64_t>().subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n));
    state = State::requested;
    changed.notify_all();
  }

  Batch collect() {
    const std::exception_ptr error = finish();
    Batch batch = std::move(job);
    job = {};
    if (error) std::rethrow_exception(error);
    return batch;
  }

  // Waits until the worker has nothing to do. Gives what it threw.
  std::exception_ptr finish() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return state != State::requested; });
    state = State::idle;
    return std::exchange(thrown, nullptr);
  }

  void work() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return stop || state == State::requested; });
      if (stop) return;
      lock.unlock();
      std::exception_ptr error;
      try {
        source.read(rows, job);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      thrown = std::move(error);
      state = State::ready;
      changed.notify_all();
    }
  }

  const std::unique_ptr<Source> owned;
  Source& source;
  const LoaderOptions options;
  const Source::Layout layout;
  std::int64_t batches = 0;

  Tensor order;
  Batch slots[2];
  std::int64_t epoch = 0, position = 0;
  std::uint64_t loop = 0;
  Batch current;

  enum class State : std::uint8_t { idle, requested, ready };
  std::mutex mutex;
  std::condition_variable changed;
  State state = State::idle;
  bool stop = false;
  Batch job;
  std::span<const std::int64_t> rows;
  std::exception_ptr thrown;
  std::thread worker;
};

DataLoader::DataLoader(Dataset dataset, const LoaderOptions& options) {
  auto source = std::make_unique<DatasetSource>(std::move(dataset));
  Source& from = *source;
  impl_ = new Impl(std::move(source), from, options);
}
DataLoader::DataLoader(Tensor x, Tensor y, const LoaderOptions& options) {
  auto source = std::make_unique<TensorSource>(std::move(x), std::move(y));
  Source& from = *source;
  impl_ = new Impl(std::move(source), from, options);
}
DataLoader::DataLoader(Source& source, const LoaderOptions& options) : impl_(new Impl(nullptr, source, options)) {}
DataLoader::DataLoader(DataLoader&& other) noexcept : impl_(std::exchange(other.impl_, nullptr)) {}
DataLoader& DataLoader::operator=(DataLoader&& other) noexcept {
  delete std::exchange(impl_, std::exchange(other.impl_, nullptr));
  return *this;
}
DataLoader::~DataLoader() { delete impl_; }

DataLoader::Impl& DataLoader::impl() const {
  if (impl_ == nullptr) fail("DataLoader: this loader was moved from");
  return *impl_;
}
std::int64_t DataLoader::samples() const { return impl().layout.samples; }
std::int64_t DataLoader::batches() const { return impl().batches; }
std::int64_t DataLoader::epoch() const { return impl().epoch; }
void DataLoader::set_epoch(std::int64_t epoch) {
  if (epoch < 0) fail(str("DataLoader: epoch is ", epoch, "; epochs are counted from 0"));
  impl().epoch = epoch;
}

DataLoader::Iterator DataLoader::begin() {
  impl().begin();
  return {impl_, impl_->loop};
}

Batch DataLoader::Iterator::operator*() const {
  if (ended()) fail("DataLoader: this loop is over and has no batch");
  return loader_->current;
}
DataLoader::Iterator& DataLoader::Iterator::operator++() {
  if (ended()) fail("DataLoader: this loop is over and has no next batch");
  loader_->advance(loader_->position + 1);
  return *this;
}
bool DataLoader::Iterator::ended() const {
  if (loop_ != loader_->loop)
    fail("DataLoader: another loop over this loader has begun while this one was running; give each a loader of its own");
  return loader_->position == loader_->batches;
}

}  // namespace rewind_lib::data
