// Loading hidden behind compute. A source that is slow on purpose, read in the loop and then through the double-buffered loader:
// an epoch takes the sum of reading and computing, or about the larger of the two.
//
// --json F: {"batches", "read_ms", "step_ms", "epochs": {"in the loop" | "loader": {"seconds", "waited_seconds", "reads",
// "steps"}}}; reads and steps are lists of [begin, end] in seconds since the epoch began, waited is the time in which no step ran.

#include "../support/digits_net.h"
#include "../support/measure.h"
#include "../support/options.h"

#include <numeric>
#include <thread>

namespace rw = rewind;
using support::Clock;

namespace {

using Spans = std::vector<std::pair<double, double>>;

/// The digits, from a disk far away. read() runs on the loader's thread: `reads` is complete, and safe to look at, when the loader
/// is gone.
struct Slow final : rw::data::Source {
  Slow(rw::data::Dataset digits, double milliseconds) : set(std::move(digits)), delay(milliseconds) {}
  Layout layout() const override { return {.samples = set.samples(), .x = {8, 8, 1}}; }
  void read(std::span<const std::int64_t> rows, const rw::data::Batch& out) override {
    const double begin = support::seconds_since(start);
    std::this_thread::sleep_for(delay);
    set.read(rows, out);
    reads.emplace_back(begin, support::seconds_since(start));
  }

  rw::data::Dataset set;
  std::chrono::duration<double, std::milli> delay;
  Clock::time_point start = Clock::now();
  Spans reads;
};

/// '#' where something runs, `columns` of them for `seconds`.
std::string line(const Spans& spans, double seconds, int columns) {
  std::string text(static_cast<std::size_t>(columns), '.');
  for (const auto& [begin, end] : spans)
    for (int i = 0; i < columns; ++i) {
      const double middle = (i + 0.5) * seconds / columns;
      if (begin <= middle && middle < end) text[static_cast<std::size_t>(i)] = '#';
    }
  return text;
}

/// What ran when, in seconds since the epoch began.
struct Epoch {
  Slow source;
  Spans steps = {};

  /// step(batch), with a clock.
  template <class Step>
  void run(Step& step, const rw::data::Batch& batch) {
    const double begin = support::seconds_since(source.start);
    step(batch);
    steps.emplace_back(begin, support::seconds_since(source.start));
  }
};

template <class Step>
Epoch read_in_the_loop(const rw::data::Dataset& set, double read_ms, int batch, Step& step) {
  rw::data::Batch buffer{rw::empty({batch, 8, 8, 1}), rw::empty({batch}, rw::int64)};
  std::vector<std::int64_t> rows(static_cast<std::size_t>(batch));
  Epoch epoch{Slow(set, read_ms)};
  for (std::int64_t first = 0; first < set.samples(); first += batch) {
    std::iota(rows.begin(), rows.end(), first);
    epoch.source.read(rows, buffer);
    epoch.run(step, buffer);
  }
  return epoch;
}

template <class Step>
Epoch read_ahead(const rw::data::Dataset& set, double read_ms, int batch, Step& step) {
  Epoch epoch{Slow(set, read_ms)};
  {
    rw::data::DataLoader loader{epoch.source, {.batch = batch}};
    for (const rw::data::Batch& each : loader) epoch.run(step, each);
  }
  return epoch;
}

}  // namespace

int main(int argc, char** argv) {
  int batches = 8, batch = 128;
  double read_ms = 0;
  std::string json;
  CLI::App app{"An epoch with and without a loader that works ahead"};
  app.add_option("--batches", batches)->check(CLI::Range(2, 11));
  app.add_option("--batch", batch)->check(CLI::Range(1, 128));
  app.add_option("--read-ms", read_ms, "what a batch takes to read; 0: as long as a step")->check(CLI::Range(0, 10000));
  app.add_option("--json", json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({json}, [&] {
    const rw::data::Dataset set = rw::data::digits().train.slice(0, batches * batch);
    rw::nn::Sequential net = support::digits_net();
    rw::optim::Adam adam{net.parameters(), {}};
    const auto step = [&](const rw::data::Batch& b) {
      rw::backward(rw::cross_entropy(net(b.x), b.y));
      adam.step();
    };
    const double step_ms = 1e3 * support::seconds_of(5, [&] { step(set.read(0, batch)); });
    if (read_ms == 0) read_ms = step_ms;
    nlohmann::json results{{"batches", batches}, {"read_ms", read_ms}, {"step_ms", step_ms}};

    const Epoch in_the_loop = read_in_the_loop(set, read_ms, batch, step), loaded = read_ahead(set, read_ms, batch, step);
    std::printf("%d batches; a read takes %.1f ms, a step %.1f ms\n", batches, read_ms, step_ms);
    const double longest = in_the_loop.steps.back().second;
    for (const auto& [name, e] : {std::pair{"in the loop", &in_the_loop}, {"loader", &loaded}}) {
      const double seconds = e->steps.back().second;
      double waited = seconds;
      for (const auto& [begin, end] : e->steps) waited -= end - begin;
      std::printf("\n%-12s %.1f ms\n  read     %s\n  compute  %s\n", name, 1e3 * seconds,
                  line(e->source.reads, longest, 96).c_str(), line(e->steps, longest, 96).c_str());
      results["epochs"][name] = {{"seconds", seconds}, {"waited_seconds", waited}, {"reads", e->source.reads}, {"steps", e->steps}};
    }
    support::write_json(json, results);
  });
}
