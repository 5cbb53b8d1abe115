// Times a training step (forward, loss, backward, optimizer) of a net of the model registry on random images, and reports
// its memory.
//
// --json F: {"model", "batch", "size", "float64", "optimizer", "recompute", "fused", "threads", "median_ms", "min_ms", "p95_ms",
// "images_per_second", "peak_bytes_by_category", "step_bytes" (the peak above the level between steps), "peak_rss_bytes",
// "losses"}.

#include "../examples/support/options.h"
#include "../examples/support/progress.h"

#include <sys/resource.h>

#include <algorithm>
#include <memory>

namespace rw = rewind;
using support::Clock;

namespace {

struct Settings {
  std::string model = "mobilenet_v2", optimizer = "momentum", recompute = "vanilla", start, json;
  int batch = 16, size = 0, depth = 0, classes = 0, threads = rw::parallel::threads(), steps = 12;
  bool plain = false, float64 = false;
};

// So low that rounding, which a deep net amplifies from step to step, does not hide whether another framework does the same steps.
constexpr double learning_rate = 1e-5;

std::unique_ptr<rw::optim::Optimizer> make_optimizer(const std::string& name, std::vector<rw::Parameter> parameters) {
  if (name == "adam") return std::make_unique<rw::optim::Adam>(std::move(parameters), rw::optim::AdamOptions{.lr = learning_rate});
  const double momentum = name == "momentum" ? 0.9 : 0;
  return std::make_unique<rw::optim::SGD>(
      std::move(parameters),
      rw::optim::SGDOptions{.lr = learning_rate, .momentum = momentum, .weight_decay = momentum > 0 ? 1e-4 : 0});
}

/// Writes a line of JSON, {"tensors": [{"name", "shape", "dtype"}]}, and then their bytes: parameters, x and y.
void write_start(const std::string& path, const std::vector<rw::Parameter>& parameters, const rw::Tensor& x, const rw::Tensor& y) {
  std::vector<rw::Parameter> all = parameters;
  all.push_back({"x", x});
  all.push_back({"y", y});
  nlohmann::json header;
  for (const rw::Parameter& p : all) {
    const std::vector<std::int64_t> shape(p.value.shape().begin(), p.value.shape().end());
    header["tensors"].push_back({{"name", p.name}, {"shape", shape}, {"dtype", rw::str(p.value.dtype())}});
  }
  std::ofstream file(path, std::ios::binary);
  file << header.dump() << '\n';
  for (const rw::Parameter& p : all)
    file.write(reinterpret_cast<const char*>(p.value.raw<std::byte>()), static_cast<std::streamsize>(p.value.bytes()));
  if (!file.flush()) rw::fail(rw::str("cannot write ", path));
}

/// Nothing is left to chance, so that another framework can do the same steps.
class WithoutDropout final : public rw::nn::ModuleVisitor {
  void visit(const std::string&, rw::nn::Module& module) override {
    if (dynamic_cast<rw::nn::Dropout*>(&module) != nullptr || dynamic_cast<rw::nn::StochasticDepth*>(&module) != nullptr)
      module.eval();
  }
};

/// Makes parameters and buffers of a net double.
class ToFloat64 final : public rw::nn::ModuleVisitor, rw::nn::Fields {
  void visit(const std::string&, rw::nn::Module& module) override { module.describe(*this); }
  void parameter(std::string_view, rw::Tensor& t) override {
    const rw::memory::CategoryScope category(rw::Category::parameter);
    if (t.defined()) t = t.detach().to(rw::float64).set_requires_grad();
  }
  void buffer(std::string_view, rw::Tensor& t) override {
    const rw::memory::CategoryScope category(rw::Category::parameter);
    if (t.defined() && t.dtype() == rw::float32) t = t.to(rw::float64);
  }
  void child(std::string_view, rw::nn::Module&) override {}
};

void run(const Settings& s) {
  support::finish_on_interrupt();
  rw::parallel::set_threads(s.threads);
  rw::nn::Sequential net = rw::nn::models::make(s.model, {.classes = s.classes, .size = s.size, .depth = s.depth});
  net.fuse(!s.plain);
  WithoutDropout without;
  rw::nn::for_each_module(net, without);
  net.recompute(rw::Recompute::parse(s.recompute));
  if (s.float64) {
    ToFloat64 convert;
    rw::nn::for_each_module(net, convert);
  }
  auto optimizer = make_optimizer(s.optimizer, net.parameters());
  const rw::Shape shape = rw::nn::models::input_shape(s.model, s.batch, s.size);
  rw::Tensor x, y;
  {
    const rw::memory::CategoryScope input(rw::Category::input);
    x = rw::randn(shape);
    if (s.float64) x = x.to(rw::float64);
    y = rw::empty({s.batch}, rw::int64);
    auto labels = y.mutate<std::int64_t>();
    for (std::size_t i = 0; i < labels.size(); ++i)
      labels[i] = static_cast<std::int64_t>(i) % (s.classes > 0 ? std::min(s.classes, 10) : 10);
  }
  if (!s.start.empty()) write_start(s.start, net.parameters(), x, y);
  std::vector<double> ms, losses;
  for (int i = -3; i < s.steps && !support::interrupted; ++i) {
    if (i == 0) rw::memory::reset_peak();
    const auto begin = Clock::now();
    rw::Tensor l = rw::cross_entropy(net(x), y);
    losses.push_back(l.item());
    rw::backward(std::move(l));
    optimizer->step();
    if (i >= 0) ms.push_back(1e3 * support::seconds_since(begin));
  }
  if (ms.empty()) rw::fail("interrupted before a step was timed; there is nothing to report");
  std::ranges::sort(ms);
  const double median = rw::percentile(ms, 0.5), p95 = rw::percentile(ms, 0.95);
  const rw::memory::Usage peak = rw::memory::peak(), live = rw::memory::live();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf(
      "%s batch %d, %s, %s, %d threads: %.1f ms (min %.1f, p95 %.1f), %.1f images/s; a step takes %s above the %s between steps; "
      "RSS %s\n",
      s.model.c_str(), s.batch, s.optimizer.c_str(), s.recompute.c_str(), s.threads, median, ms.front(), p95,
      1e3 * static_cast<double>(s.batch) / median, rw::memory::human(peak.total - live.total).c_str(),
      rw::memory::human(live.total).c_str(), rw::memory::human(static_cast<std::size_t>(usage.ru_maxrss) * 1024).c_str());
  support::write_json(s.json, {{"model", s.model},
                               {"batch", s.batch},
                               {"size", shape[1]},
                               {"float64", s.float64},
                               {"optimizer", s.optimizer},
                               {"recompute", s.recompute},
                               {"fused", !s.plain},
                               {"threads", s.threads},
                               {"median_ms", median},
                               {"min_ms", ms.front()},
                               {"p95_ms", p95},
                               {"images_per_second", 1e3 * static_cast<double>(s.batch) / median},
                               {"peak_bytes_by_category", support::to_json(peak)},
                               {"step_bytes", peak.total - live.total},
                               {"peak_rss_bytes", static_cast<std::int64_t>(usage.ru_maxrss) * 1024},
                               {"losses", losses}});
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"Times a training step"};
  app.add_option("--model", s.model);
  app.add_flag("--plain", s.plain, "convolutions, batch normalisations and activations one after the other, without fusion");
  app.add_flag("--float64", s.float64, "the same weights and data, computed in double: losses to compare without rounding");
  app.add_option("--batch", s.batch)->check(support::positive);
  app.add_option("--size", s.size)->check(support::positive);
  app.add_option("--depth", s.depth)->check(support::positive);
  app.add_option("--classes", s.classes)->check(support::positive);
  app.add_option("--optimizer", s.optimizer)->check(CLI::IsMember({"sgd", "momentum", "adam"}));
  app.add_option("--recompute", s.recompute);
  app.add_option("--threads", s.threads)->check(support::positive);
  app.add_option("--steps", s.steps)->check(support::positive);
  app.add_option("--start", s.start, "write the initial parameters and the batch to this file");
  app.add_option("--json", s.json, "write the results to this file");
  CLI11_PARSE(app, argc, argv);
  return support::run({s.start, s.json}, [&] { run(s); });
}
