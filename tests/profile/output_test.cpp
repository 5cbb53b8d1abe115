// What a profile is written as: tables, JSON, a Chrome trace.

#include <rewind/autograd/functional.h>
#include <rewind/core/random.h>
#include <rewind/nn/blocks.h>
#include <rewind/optim/adam.h>
#include <rewind/profile/profile.h>

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include <cmath>
#include <string>

namespace rw = rewind;
namespace nn = rw::nn;
using nlohmann::json;

namespace {

const rw::Profile& sample() {
  static const rw::Profile p = [] {
    nn::Sequential net{nn::Conv2d{{.in = 3, .out = 8, .kernel = 3, .padding = 1, .bias = false}},
                       nn::BatchNorm2d{8},
                       nn::ReLU{},
                       nn::InvertedBottleneck{{.in = 8, .out = 8, .expand = 2}},
                       nn::GlobalAvgPool{},
                       nn::Linear{8, 5}};
    net.recompute(rw::Recompute::sqrt());
    rw::optim::Adam adam{net.parameters(), {}};
    const rw::memory::CategoryScope scope(rw::Category::input);
    return rw::profile(net, rw::randn({4, 8, 8, 3}), adam, {.steps = 3, .latency_runs = 10});
  }();
  return p;
}

/// Begin and end as readers of traces find them: added up in double precision.
std::pair<double, double> span(const json& event) {
  const double begin = event["ts"], length = event["dur"];
  return {begin, begin + length};
}

}  // namespace

TEST_CASE("the JSON can be read, and says what the profile says") {
  const json j = json::parse(rw::to_json(sample()));
  const rw::Profile& p = sample();
  CHECK(j["machine"]["flops_per_mac"] == 2);
  CHECK(j["machine"]["ridge_flops_per_byte"].get<double>() == doctest::Approx(p.machine.ridge()));
  CHECK(j["ops"].size() == p.step.ops.size());
  CHECK(j["step"]["all_ops"]["flops"] == p.total.flops);
  CHECK(j["classes"].size() == p.classes.size());
  CHECK(j["classes"][0]["class"] == "tensor contraction");
  CHECK(j["classes"][0]["published_time_share"].get<double>() == doctest::Approx(0.61));
  CHECK(j["modules"].size() == p.modules.size());
  CHECK(j["memory"]["predicted_peak_bytes"] == j["memory"]["measured_peak_bytes"]);
  CHECK(j["memory"]["optimizer_state_bytes"].size() == 2);
  CHECK(j["memory"]["holders"]["saved"].size() == p.memory.holders.saved.size());
  CHECK(j["latency"]["runs"] == 10);
  CHECK(j["throughput"].size() == 3);
  CHECK_FALSE(j.contains("epoch"));
  CHECK(j["input"] == json{4, 8, 8, 3});
}

TEST_CASE("a profile of nothing has no trace, and says so") {
  CHECK_THROWS_WITH_AS(rw::chrome_trace({}), doctest::Contains("holds no step"), rw::Error);
}

TEST_CASE("numbers that are none are null") {
  rw::Profile p = sample();
  p.machine.flops = std::nan("");
  CHECK(json::parse(rw::to_json(p))["machine"]["flops_per_second"].is_null());
}

TEST_CASE("text with quotes and control characters stays text") {
  rw::Profile p = sample();
  p.modules[0].path = "a\"b\\c\n\x01";
  CHECK(json::parse(rw::to_json(p))["modules"][0]["module"] == p.modules[0].path);
}

TEST_CASE("each event of the trace lies within the one that it is in") {
  const json trace = json::parse(rw::chrome_trace(sample()));
  const json& events = trace["traceEvents"];
  std::vector<std::pair<double, double>> open;
  std::size_t ops = 0, modules = 0, phases = 0, names = 0;
  for (const json& e : events) {
    if (e["ph"] == "M") {
      CHECK(e["args"]["name"].is_string());
      ++names;
      continue;
    }
    CHECK(e["ph"] == "X");
    CHECK(e["args"].is_object());
    const auto [begin, end] = span(e);
    CHECK(begin <= end);
    while (!open.empty() && begin >= open.back().second && end > open.back().second) open.pop_back();
    if (!open.empty()) {
      CHECK(begin >= open.back().first);
      CHECK(end <= open.back().second);
    }
    open.emplace_back(begin, end);
    ops += e["args"].contains("flops") ? 1 : 0;
    modules += e["cat"] == "module" ? 1 : 0;
    phases += e["cat"] == "phase" ? 1 : 0;
  }
  CHECK(names == 2);
  CHECK(events[0]["name"] == "process_name");
  CHECK(events[1]["name"] == "thread_name");
  CHECK(events[2]["name"] == "step");
  CHECK(ops == sample().step.ops.size());
  CHECK(modules > 0);
  CHECK(phases >= 4);
}

TEST_CASE("modules in the trace are named by their paths") {
  const json trace = json::parse(rw::chrome_trace(sample()));
  bool outer = false, inner = false;
  for (const json& e : trace["traceEvents"]) {
    outer |= e["cat"] == "module" && e["name"] == "3";
    inner |= e["cat"] == "module" && e["name"] == "3.conv.0.0";
  }
  CHECK(outer);
  CHECK(inner);
}

TEST_CASE("the tables name the machine, every class, the peak and the assumptions") {
  const std::string text = rw::to_string(sample());
  for (const char* part :
       {"GFLOP/s", "ridge point", "1 MAC = 2 FLOPs", "tensor contraction", "framework overhead", "61.00", "25.50",
        "Who holds the peak", "Latency at batch 1", "Throughput", "Horowitz", "DRAM 640", "recompute"}) {
    CAPTURE(part);
    CHECK(text.find(part) != std::string::npos);
  }
  CHECK(rw::to_string(sample(), 0, 0).size() < text.size());
}

TEST_CASE("what has no ops, or none that move anything, has a dash in the tables and no number") {
  nn::Sequential net{nn::Flatten{}, nn::Linear{8, 4}};
  rw::optim::Adam adam{net.parameters(), {}};
  rw::Profile p = rw::profile(net, rw::randn({2, 2, 4}), adam, {.steps = 1, .latency_runs = 0, .throughput = false});
  p.memory.holders.saved = {{"linear", "1", "x, for the gradient of w", {2, 8}, rw::float32, rw::Category::activation, 64}};
  const std::string text = rw::to_string(p);
  CHECK(text.find("nan") == std::string::npos);
  const auto line = [&](std::string_view name) {
    const std::size_t begin = text.find(name);
    REQUIRE(begin != std::string::npos);
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  for (const char* name : {"statistical normalisation", "0: Flatten", "reshape"}) {
    CAPTURE(name);
    CHECK(line(name).find("0 %") == std::string::npos);
  }
  CHECK(line("statistical normalisation").find("25.50") != std::string::npos);
  CHECK(text.find(" in 1 tensor, in use") != std::string::npos);
}
