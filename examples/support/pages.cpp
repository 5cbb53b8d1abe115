#include "pages.h"

#include <rewind/autograd/schedule/simulate.h>
#include <rewind/autograd/schedule/strategies.h>
#include <rewind/nn/describe_chain.h>
#include <rewind/report/report.h>

#include <cmath>

namespace rw = rewind;

namespace support {

nlohmann::json timeline(const rw::DryRun& plan) {
  rw::memory::Usage live = plan.before;
  nlohmann::json points = nlohmann::json::array();
  for (std::size_t i = 0; i < plan.timeline.size(); ++i) {
    const rw::memory::Event& e = plan.timeline[i];
    live.bytes[static_cast<int>(e.category)] += static_cast<std::size_t>(e.delta);
    nlohmann::json point{{"t", i}, {"op", e.op}, {"module", e.module}};
    for (int c = 0; c < rw::category_count; ++c) point[rw::name_of(static_cast<rw::Category>(c))] = live.bytes[c];
    points.push_back(std::move(point));
  }
  std::vector<std::string> keys;
  for (int c = 0; c < rw::category_count; ++c) keys.emplace_back(rw::name_of(static_cast<rw::Category>(c)));
  return rw::report::thin(points, keys, 1500);
}

nlohmann::json trace(const rw::schedule::Chain& chain, const std::vector<rw::schedule::Action>& actions) {
  constexpr const char* kinds[] = {"Fnone", "Fck", "Fall", "B"};
  nlohmann::json steps = nlohmann::json::array();
  for (const rw::schedule::Step& s : rw::schedule::simulate(chain, actions).steps)
    steps.push_back({{"kind", kinds[static_cast<int>(s.action.kind)]},
                     {"stage", s.action.stage},
                     {"start", s.start},
                     {"end", s.end},
                     {"during", s.during},
                     {"after", s.after}});
  return steps;
}

void write_profile_report(const std::string& path, const nlohmann::json& j, const rw::Profile& p, rw::nn::Sequential& net,
                          const rw::Tensor& input) {
  nlohmann::json data{{"title", "Profile: " + j["model"].get<std::string>()},
                      {"parameters", p.parameters},
                      {"machine", rw::str(p.machine.cores, " cores, ", std::llround(p.machine.flops * 1e-9), " GFLOP/s, ",
                                          std::llround(p.machine.bytes_per_second * 1e-9), " GB/s")},
                      {"profile", j}};
  for (const char* key : {"model", "options", "batch", "size", "optimizer", "recompute", "threads"}) data[key] = j[key];
  nlohmann::json step{{"strategy", j["recompute"]}, {"timeline", timeline(p.memory.plan)}};
  if (const auto& actions = net.actions(); !actions.empty()) {
    const std::vector<rw::schedule::Action> followed = actions;
    net.recompute(rw::Recompute::vanilla());
    const rw::schedule::Chain chain = rw::nn::describe_chain(net, input, rw::Costs::counted);
    step["schedule"] = rw::schedule::to_string(followed);
    step["trace"] = trace(chain, followed);
    data["stages"] = nlohmann::json::array();
    for (const rw::schedule::Stage& s : chain.stages) data["stages"].push_back(s.name);
    data["frontier_unit"] = "s, counted";
  }
  data["strategies"] = {step};
  rw::report::write(path, data);
  std::cout << "\nreport: " << path << "\n";
}

}  // namespace support
