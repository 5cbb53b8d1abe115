// The profiler's part that knows ops alone: what it counts is what a dry run counts, and what it lists is what is held.

#include <rewind/autograd/backward.h>
#include <rewind/autograd/checkpoint.h>
#include <rewind/autograd/dry_run.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/profiler.h>
#include <rewind/core/random.h>

#include <doctest/doctest.h>

#include <algorithm>

namespace rw = rewind;
using rw::Tensor;

namespace {

/// A parameter, as a module makes it.
Tensor parameter(const rw::Shape& shape) {
  const rw::memory::CategoryScope scope(rw::Category::parameter);
  return rw::randn(shape).set_requires_grad();
}

struct TwoLayers {
  Tensor w1 = parameter({16, 8}), w2 = parameter({4, 16}), x = rw::randn({32, 8});

  Tensor forward() const { return rw::mean(rw::square(rw::linear(rw::tanh(rw::linear(x, w1)), w2))); }
  void step() {
    rw::backward(forward());
    for (const Tensor& w : {w1, w2}) w.set_grad({});
  }
};

}  // namespace

TEST_CASE("percentiles are by nearest rank") {
  CHECK(rw::percentile({3, 1, 2}, 0.5) == 2);
  CHECK(rw::percentile({4, 3, 2, 1}, 0.5) == 2);
  CHECK(rw::percentile({1, 2, 3, 4}, 0.95) == 4);
  CHECK(rw::percentile({7}, 0) == 7);
  CHECK(rw::percentile({}, 0.5) != rw::percentile({}, 0.5));
}

TEST_CASE("profiled ops add up to what a dry run counts") {
  TwoLayers net;
  const rw::OpProfile p = rw::profile_ops([&] { net.step(); }, 3, 1);
  const rw::DryRun plan = rw::dry_run([&] { net.step(); });
  std::int64_t flops = 0, macs = 0, bytes = 0, calls = 0;
  for (const rw::OpRecord& op : p.ops) {
    flops += op.cost.flops;
    macs += op.cost.macs;
    bytes += op.cost.bytes_read + op.cost.bytes_written;
    REQUIRE(op.runs.size() == 3);
  }
  for (const rw::OpTotal& t : plan.ops) calls += t.count;
  CHECK(flops == plan.flops);
  CHECK(macs == plan.macs);
  CHECK(bytes == plan.bytes_moved);
  CHECK(static_cast<std::int64_t>(p.ops.size()) == calls);
  CHECK(p.step_seconds.size() == 3);
  CHECK(p.plain_seconds.size() == 3);
}

TEST_CASE("ops run one after the other within their step") {
  TwoLayers net;
  const rw::OpProfile p = rw::profile_ops([&] { net.step(); }, 2);
  for (std::size_t s = 0; s < 2; ++s) {
    double at = 0;
    for (const rw::OpRecord& op : p.ops) {
      CHECK(op.runs[s].begin >= at);
      CHECK(op.runs[s].end >= op.runs[s].begin);
      at = op.runs[s].end;
    }
    CHECK(at <= p.step_seconds[s]);
    CHECK(p.coverage(s) > 0);
    CHECK(p.coverage(s) <= 1);
  }
}

TEST_CASE("saved tensors are listed once by bytes, and sum to what the tracker counts") {
  TwoLayers net;
  CHECK(rw::saved_tensors().empty());
  const std::size_t before = rw::memory::live()[rw::Category::activation];
  const Tensor loss = net.forward();
  std::size_t bytes = 0;
  for (const rw::SavedTensor& s : rw::saved_tensors())
    if (s.category == rw::Category::activation) bytes += s.bytes;
  // x and the loss are activations as well: x was there before, and is saved.
  CHECK(bytes - net.x.bytes() == rw::memory::live()[rw::Category::activation] - before - loss.bytes());
}

TEST_CASE("the reason why a tensor is saved names the gradients that need it") {
  TwoLayers net;
  const Tensor loss = net.forward();
  const auto saved = rw::saved_tensors();
  const auto find = [&](std::string_view op, std::string_view why) {
    return std::ranges::any_of(saved, [&](const rw::SavedTensor& s) { return s.op == op && s.why == why; });
  };
  CHECK(find("linear", "x, for the gradient of w (a parameter)"));
  CHECK(find("tanh", "y, for the gradient of x"));
}

TEST_CASE("what an op saves is counted once, also when it is recomputed") {
  TwoLayers net;
  const auto saved_in = [](const rw::OpProfile& p, rw::Phase phase) {
    std::size_t bytes = 0;
    for (const rw::OpRecord& op : p.ops)
      if (op.phase == phase) bytes += op.saved_bytes;
    return bytes;
  };
  const rw::OpProfile plain = rw::profile_ops([&] { net.step(); }, 1);
  CHECK(saved_in(plain, rw::Phase::forward) > 0);
  CHECK(saved_in(plain, rw::Phase::recompute) == 0);
  CHECK(saved_in(plain, rw::Phase::backward) == 0);

  const auto part = [&](Tensor x) { return rw::tanh(rw::linear(std::move(x), net.w1)); };
  const rw::OpProfile again = rw::profile_ops(
      [&] {
        rw::backward(rw::mean(rw::square(rw::linear(rw::checkpoint(part, net.x), net.w2))));
        for (const Tensor& w : {net.w1, net.w2}) w.set_grad({});
      },
      1);
  CHECK(saved_in(again, rw::Phase::recompute) > 0);
}

TEST_CASE("the holders of the peak are within it, and its op is one of the step") {
  TwoLayers net;
  const auto step = [&] { net.step(); };
  const rw::PeakHolders h = rw::peak_holders(step);
  const rw::DryRun plan = rw::dry_run(step);
  CHECK(h.op[0] != 0);
  CHECK(h.live.total <= plan.peak.total);
  CHECK(h.saved_bytes > 0);
  CHECK(h.saved_bytes + h.running_bytes + h.other_bytes == h.live[rw::Category::activation]);
  Tensor left;  // on the tape, and of a dry run that is over
  static_cast<void>(rw::dry_run([&] { left = rw::tanh(rw::linear(rw::zeros({4096, net.w1.size(1)}), net.w1)); }));
  const rw::PeakHolders again = rw::peak_holders(step);
  CHECK(again.saved_bytes == h.saved_bytes);
  CHECK(again.other_bytes == h.other_bytes);
}

TEST_CASE("a profile of ops refuses what it cannot measure") {
  TwoLayers net;
  const auto step = [&] { net.step(); };
  CHECK_THROWS_WITH_AS(rw::profile_ops(step, 0), doctest::Contains("at least one step"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::profile_ops(step, 1, -1), doctest::Contains("must not be negative"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::profile_ops([] {}), doctest::Contains("no op"), rw::Error);
  CHECK_THROWS_WITH_AS(rw::dry_run([&] { rw::profile_ops(step); }), doctest::Contains("dry run"), rw::Error);
  int calls = 0;
  const auto fickle = [&] {
    const rw::NoGrad no_grad;
    const Tensor y = ++calls % 2 == 0 ? rw::tanh(net.x) : rw::square(net.x);
  };
  CHECK_THROWS_WITH_AS(rw::profile_ops(fickle, 2, 0), doctest::Contains("the same ops every time"), rw::Error);
}
