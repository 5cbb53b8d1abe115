#include "compare.h"

#include "pages.h"

#include <rewind/autograd/schedule/frontier.h>
#include <rewind/autograd/schedule/simulate.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/report/report.h>

#include <sys/resource.h>

#include <algorithm>
#include <iomanip>
#include <iterator>
#include <sstream>

namespace support::compare {
namespace {

std::string hex(std::uint64_t v) {
  std::ostringstream out;
  out << std::hex << std::setw(16) << std::setfill('0') << v;
  return out.str();
}

std::vector<rw::schedule::Action> actions_of(const Result& r, const rw::schedule::Chain& chain) {
  return r.actions.empty() ? rw::schedule::vanilla(chain).actions : r.actions;
}

}  // namespace

Net::Net(const Task& task) : task_(task) {
  rw::random::seed(1);
  const bool digits = task.model == "digits", small = task.model != "mobilenet_v2";
  if (task_.batch == 0) task_.batch = digits ? 256 : small ? 32 : 16;
  if (task_.size == 0) task_.size = digits ? 8 : small ? 32 : 224;
  chain = digits ? digits_net() : rw::nn::models::make(task.model, {.classes = small ? 10 : 1000, .depth = task.depth});
  chain.fuse(!task.plain);
  if (digits) {
    if (task_.size != 8 || task_.depth != 0) rw::fail("the digits are 8x8, for a net of its own; leave out --size and --depth");
    batch = rw::data::digits().train.read(0, task_.batch);
    return;
  }
  const rw::memory::CategoryScope input(rw::Category::input);
  batch = {rw::randn({task_.batch, task_.size, task_.size, 3}), rw::empty({task_.batch}, rw::int64)};
  auto labels = batch.y.mutate<std::int64_t>();
  for (std::size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<std::int64_t>(i) % 10;
}

rw::Tensor Net::forward_backward() {
  rw::Tensor loss = rw::cross_entropy(chain(batch.x), batch.y);
  rw::backward(loss);
  return loss;
}

std::string Net::described() const {
  return rw::str(task_.model, ", batch ", task_.batch, ", ", task_.size, "x", task_.size, ", ", task_.optimizer, ", ",
                 chain.stages().size(), " stages", task_.plain ? ", unfused" : "");
}

nlohmann::json Net::about(int threads, std::size_t program_bytes) const {
  return {{"model", task_.model}, {"batch", task_.batch},           {"size", task_.size},   {"optimizer", task_.optimizer},
          {"threads", threads},   {"program_bytes", program_bytes}, {"fused", !task_.plain}};
}

Weights::Weights(rw::nn::Module& net) : tensors_(net.parameters()) {
  std::ranges::move(net.buffers(), std::back_inserter(tensors_));
  const rw::memory::CategoryScope category(rw::Category::input);
  for (const auto& t : tensors_) copies_.push_back(t.value.clone());
}

void Weights::restore() {
  for (std::size_t i = 0; i < copies_.size(); ++i) tensors_[i].value.copy_from(copies_[i]);
}

double Result::median_ms() const { return rw::percentile(step_ms, 0.5); }

double Result::recomputed() const {
  const auto again = static_cast<double>(plan.flops_in(rw::Phase::recompute));
  return again / (static_cast<double>(plan.flops) - again);
}

std::unique_ptr<rw::optim::Optimizer> make_optimizer(const std::string& name, std::vector<rw::Parameter> parameters) {
  if (name == "adam") return std::make_unique<rw::optim::Adam>(std::move(parameters), rw::optim::AdamOptions{.lr = 1e-3});
  return std::make_unique<rw::optim::SGD>(std::move(parameters),
                                          rw::optim::SGDOptions{.lr = 1e-2, .momentum = name == "momentum" ? 0.9 : 0});
}

std::uint64_t hash_gradients(rw::nn::Module& net) {
  std::uint64_t hash = 0;
  for (const auto& p : net.parameters()) hash = hash * 0x9e3779b97f4a7c15 + rw::hash(p.value.grad());
  return hash;
}

std::size_t peak_resident() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

Picture picture(Net& net, const std::vector<Result>& results) {
  net.chain.recompute(rw::Recompute::vanilla());
  Picture p{.chain = rw::nn::describe_chain(net.chain, net.batch.x, rw::Costs::measured), .costs = "measured"};
  const Result& base = results.front();
  const rw::schedule::Trace own = rw::schedule::simulate(p.chain, actions_of(base, p.chain));
  p.beside_bytes = static_cast<std::int64_t>(base.plan.peak.total) - own.peak;
  p.beside_seconds = std::max(0.0, 1e-3 * base.median_ms() - own.cost);
  p.frontier = nlohmann::json::array();
  const rw::schedule::Frontier frontier = rw::schedule::solve(p.chain);
  for (const rw::schedule::Point& point : frontier.points())
    p.frontier.push_back({{"bytes", point.bytes + p.beside_bytes}, {"seconds", point.cost + p.beside_seconds}});
  return p;
}

void print(const std::vector<Result>& results) {
  std::printf("\n%-16s %10s %10s %11s %10s %9s %7s %7s %10s  %s\n", "strategy", "predicted", "measured", "activations", "workspace",
              "ms/step", "time", "again", "loss", "gradients");
  for (const Result& r : results)
    std::printf("%-16s %10s %10s %11s %10s %9.1f %6.2fx %6.1f%% %10.6f  %s\n", r.strategy.c_str(),
                rw::memory::human(r.plan.peak.total).c_str(), rw::memory::human(r.peak.total).c_str(),
                rw::memory::human(r.peak[rw::Category::activation]).c_str(),
                rw::memory::human(r.peak[rw::Category::workspace]).c_str(), r.median_ms(),
                r.median_ms() / results.front().median_ms(), 100 * r.recomputed(), r.loss, hex(r.gradient_hash).c_str());
}

void print(const Picture& picture) {
  std::printf("\nThe frontier: the least time for so much memory, by %s costs (%zu corners; a few of them)\n%12s %10s\n",
              picture.costs.c_str(), picture.frontier.size(), "peak", "ms/step");
  const std::size_t n = picture.frontier.size(), rows = std::min<std::size_t>(n, 24);
  const double slowest = 1e3 * picture.frontier.front()["seconds"].get<double>();
  for (std::size_t i = 0; i < rows; ++i) {
    const auto& point = picture.frontier[rows == 1 ? 0 : i * (n - 1) / (rows - 1)];
    const double ms = 1e3 * point["seconds"].get<double>();
    std::printf("%12s %10.1f  %s\n", rw::memory::human(point["bytes"].get<std::size_t>()).c_str(), ms,
                std::string(static_cast<std::size_t>(40 * ms / slowest), '#').c_str());
  }
}

nlohmann::json to_json(const std::vector<Result>& results, const nlohmann::json& about) {
  nlohmann::json list = nlohmann::json::array();
  for (const Result& r : results) {
    nlohmann::json j{{"strategy", r.strategy},
                     {"predicted_peak_bytes", r.plan.peak.total},
                     {"measured_peak_bytes", r.peak.total},
                     {"peak_bytes", r.peak.total},
                     {"peak_bytes_by_category", support::to_json(r.peak)},
                     {"activation_peak_bytes", r.peak[rw::Category::activation]},
                     {"process_peak_bytes", r.process_bytes},
                     {"step_ms_median", r.median_ms()},
                     {"recomputed_flops_ratio", r.recomputed()},
                     {"loss", r.loss},
                     {"gradient_hash", hex(r.gradient_hash)},
                     {"schedule", r.actions.empty() ? "vanilla" : rw::schedule::to_string(r.actions)},
                     {"steps", r.step_ms.size()}};
    j.update(about);
    list.push_back(std::move(j));
  }
  return list;
}

void write_report(const std::string& path, const std::vector<Result>& results, const Picture& picture, const nlohmann::json& list,
                  const nlohmann::json& about) {
  nlohmann::json data = about;
  data["title"] = "Memory against time: " + about["model"].get<std::string>();
  data["frontier"] = picture.frontier;
  data["frontier_beside"] = {{"bytes", picture.beside_bytes}, {"seconds", picture.beside_seconds}};
  data["frontier_unit"] = "seconds a step, " + picture.costs;
  data["stages"] = nlohmann::json::array();
  for (const rw::schedule::Stage& s : picture.chain.stages) data["stages"].push_back(s.name);
  data["strategies"] = list;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const auto actions = actions_of(results[i], picture.chain);
    data["strategies"][i]["schedule"] = rw::schedule::to_string(actions);
    data["strategies"][i]["trace"] = trace(picture.chain, actions);
    data["strategies"][i]["timeline"] = timeline(results[i].plan);
  }
  rw::report::write(path, data);
  std::cout << "\nreport: " << path << "\n";
}

void assert_equal(const std::vector<Result>& results) {
  for (const Result& r : results) {
    if (r.gradient_hash != results.front().gradient_hash || r.loss != results.front().loss)
      throw rw::InternalError(r.strategy + ": gradients or loss differ from those of " + results.front().strategy +
                              "; this is a bug in Rewind, please report it");
    if (!(r.plan.peak == r.peak))
      throw rw::InternalError(rw::str(r.strategy, ": predicted ", r.plan.peak.total, " bytes, measured ", r.peak.total,
                                      "; this is a bug in Rewind, please report it"));
  }
}

}  // namespace support::compare
