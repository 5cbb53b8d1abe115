#include <rewind/autograd/backward.h>
#include <rewind/autograd/functional.h>
#include <rewind/autograd/grad_mode.h>
#include <rewind/core/random.h>
#include <rewind/profile/profile.h>

#include <algorithm>
#include <map>

namespace rewind_lib {
namespace {

using detail::now;

/// Everything that training steps change, put back at the end. The copies are kept beside the tracker: what is measured
/// meanwhile is the step.
class Unchanged {
 public:
  Unchanged(nn::Module& net, const Tensor& input, optim::Optimizer& optimizer) : modes_(net), optimizer_(optimizer) {
    for (const Parameter& b : net.buffers()) keep(b.value);
    gradients_.emplace_back(input, input.take_grad());
    for (const Parameter& p : net.parameters()) gradients_.emplace_back(p.value, p.value.take_grad());
  }
  ~Unchanged() {
    for (const auto& [value, gradient] : gradients_) value.set_grad(gradient);
    for (const auto& [value, bytes] : values_) {
      std::ranges::copy(bytes, value.raw<std::byte>());
      ++value.impl().storage->version;
    }
  }
  Unchanged(const Unchanged&) = delete;
  Unchanged& operator=(const Unchanged&) = delete;

 private:
  void keep(const Tensor& t) {
    const auto* bytes = t.raw<const std::byte>();
    if (bytes == nullptr)
      fail(str("profile: a buffer, ", t.dtype(), " ", t.shape(), ", was made in a dry run, which is over; make the net outside"));
    values_.emplace_back(t, std::vector<std::byte>(bytes, bytes + t.bytes()));
  }

  nn::ModeScope modes_;
  std::vector<std::pair<Tensor, Tensor>> gradients_;
  std::vector<std::pair<Tensor, std::vector<std::byte>>> values_;
  optim::Optimizer::Trial optimizer_;
  random::GeneratorScope generator_;
};

/// A batch, and what is done with it.
class Steps {
 public:
  Steps(nn::Module& net, optim::Optimizer& optimizer, detail::LossCall loss, Tensor target)
      : net_(net), optimizer_(optimizer), loss_(loss), target_(std::move(target)) {}

  void train(const Tensor& x) {
    Tensor y = net_(x);
    if (loss_.call != nullptr) {
      backward(loss_.call(loss_.loss, std::move(y)));
    } else if (y.rank() == 2) {
      Tensor labels = labels_for(y);
      backward(cross_entropy(std::move(y), std::move(labels)));
    } else {
      Tensor g = DryLedger::active() ? empty(y.shape(), y.dtype()) : ones(y.shape(), y.dtype());
      backward(std::move(y), std::move(g));
    }
    optimizer_.step();
  }
  void train_on(data::Batch batch) {
    backward(cross_entropy(net_(std::move(batch.x)), std::move(batch.y)));
    optimizer_.step();
  }
  void infer(const Tensor& x) {
    const NoGrad no_grad;
    net_(x);
  }

 private:
  Tensor labels_for(const Tensor& y) {
    const std::int64_t n = y.size(0);
    if (target_.defined()) return target_.size(0) == n ? target_ : view_rows(target_, 0, n);
    if (made_up_.defined() && made_up_.size(0) == n) return made_up_;
    const memory::CategoryScope input(Category::input);
    Tensor labels = empty({n}, int64);
    if (DryLedger::active()) return labels;
    auto values = labels.mutate<std::int64_t>();
    for (std::int64_t i = 0; i < n; ++i) values[static_cast<std::size_t>(i)] = i % y.size(1);
    return made_up_ = std::move(labels);
  }

  nn::Module& net_;
  optim::Optimizer& optimizer_;
  detail::LossCall loss_;
  Tensor target_, made_up_;
};

/// Adds up ops, step by step.
class Sum {
 public:
  Sum(const Machine& machine, const std::vector<double>& steps) : machine_(&machine), steps_(&steps) {}

  void add(const OpRecord& op) {
    ++work_.calls;
    work_.macs += op.cost.macs;
    work_.flops += op.cost.flops;
    work_.bytes_read += op.cost.bytes_read;
    work_.bytes_written += op.cost.bytes_written;
    work_.saved_bytes += op.saved_bytes;
    work_.workspace_bytes = std::max(work_.workspace_bytes, op.workspace_bytes);
    work_.roofline +=
        machine_->roofline(static_cast<double>(op.cost.flops), static_cast<double>(op.cost.bytes_read + op.cost.bytes_written));
    work_.energy += estimate_energy(op.cost);
    seconds_.resize(op.runs.size());
    for (std::size_t s = 0; s < op.runs.size(); ++s) seconds_[s] += op.runs[s].seconds();
  }
  Work finish() {
    if (work_.calls == 0) return work_;
    work_.median = percentile(seconds_, 0.5);
    work_.p95 = percentile(seconds_, 0.95);
    // Medians do not add up, and a mean is upset by one step that another program held up: the steps up to the median one.
    const double median = percentile(*steps_, 0.5);
    double part = 0, whole = 0;
    for (std::size_t s = 0; s < steps_->size(); ++s) {
      if ((*steps_)[s] > median) continue;
      part += seconds_[s];
      whole += (*steps_)[s];
    }
    work_.share = part / whole;
    return work_;
  }

 private:
  const Machine* machine_;
  const std::vector<double>* steps_;
  Work work_;
  std::vector<double> seconds_;
};

/// Lists the modules with the parameters that they hold themselves; by path, and by parameter.
class Modules final : public nn::ModuleVisitor, nn::Fields {
 public:
  std::vector<ModuleRow> rows;
  std::map<std::string, std::size_t, std::less<>> by_path;
  std::map<const void*, std::size_t> by_parameter;

  void visit(const std::string& path, nn::Module& module) override {
    by_path.emplace(module.path(), rows.size());  // as ops know it: from the module that was called first
    rows.push_back({.path = path, .type = module.type(), .depth = nn::depth_of(path), .parameters = 0, .phase = {}});
    module.describe(*this);
  }

 private:
  void parameter(std::string_view, Tensor& t) override {
    if (t.defined() && by_parameter.emplace(&t.impl(), rows.size() - 1).second) rows.back().parameters += t.numel();
  }
  void buffer(std::string_view, Tensor&) override {}
  void child(std::string_view, nn::Module&) override {}
};

void add_up(Profile& p, nn::Module& net) {
  Modules modules;
  for_each_module(net, modules);
  for (const ModuleRow& row : modules.rows) p.parameters += row.parameters;

  const Sum none(p.machine, p.step.step_seconds);
  Sum total = none;
  // What is published stands beside ours whether the net has such ops or not.
  std::map<Kind, Sum> classes{{Kind::contraction, none}, {Kind::normalisation, none}, {Kind::elementwise, none}};
  std::map<std::pair<std::string_view, Phase>, std::pair<OpRow, Sum>> ops;
  std::vector<Sum> of_modules(modules.rows.size() * phase_count, none);
  for (const OpRecord& op : p.step.ops) {
    total.add(op);
    classes.emplace(op.kind, none).first->second.add(op);
    ops.emplace(std::pair(op.op, op.phase), std::pair(OpRow{op.op, op.kind, op.phase, {}}, none)).first->second.second.add(op);
    std::size_t at = 0;
    if (const auto owner = modules.by_parameter.find(op.changes); owner != modules.by_parameter.end()) at = owner->second;
    if (const auto module = modules.by_path.find(op.module); op.module[0] != 0 && module != modules.by_path.end())
      at = module->second;
    of_modules[at * phase_count + static_cast<std::size_t>(op.phase)].add(op);
  }

  p.total = total.finish();
  const auto share = [](std::int64_t part, std::int64_t whole) {
    return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
  };
  for (auto& [kind, sum] : classes) {
    ClassRow row{.kind = kind, .work = sum.finish()};
    row.flops_share = share(row.work.flops, p.total.flops);
    row.bytes_share = share(row.work.bytes(), p.total.bytes());
    if (kind == Kind::contraction) row.published_flops = 99.80, row.published_time = 61.0;
    if (kind == Kind::normalisation) row.published_flops = 0.17, row.published_time = 25.5;
    if (kind == Kind::elementwise) row.published_flops = 0.03, row.published_time = 13.5;
    p.classes.push_back(row);
  }
  for (auto& [key, entry] : ops) {
    entry.first.work = entry.second.finish();
    p.ops.push_back(entry.first);
  }
  std::ranges::stable_sort(p.ops, std::greater(), [](const OpRow& r) { return r.work.median; });
  for (std::size_t m = 0; m < modules.rows.size(); ++m)
    for (std::size_t k = 0; k < phase_count; ++k) modules.rows[m].phase[k] = of_modules[m * phase_count + k].finish();
  p.modules = std::move(modules.rows);
}

/// Seconds of one run: the median of several that take a fifth of a second together, at least three.
template <class F>
double time_of(F&& run) {
  run();
  std::vector<double> seconds;
  const double start = now();
  while (seconds.size() < 3 || (now() - start < 0.2 && seconds.size() < 1000)) {
    const double begin = now();
    run();
    seconds.push_back(now() - begin);
  }
  return percentile(std::move(seconds), 0.5);
}

Latency measure_latency(nn::Module& net, Steps& steps, const Tensor& input, int runs) {
  const Tensor one = view_rows(input, 0, 1);
  net.eval();
  for (int i = 0; i < 3; ++i) steps.infer(one);
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    const double begin = now();
    steps.infer(one);
    seconds.push_back(now() - begin);
  }
  return {runs, percentile(seconds, 0.5), percentile(seconds, 0.95), percentile(seconds, 0.99)};
}

std::vector<Throughput> measure_throughput(nn::Module& net, Steps& steps, const Tensor& input, bool own_loss) {
  std::vector<Throughput> list;
  const std::int64_t all = input.size(0);
  for (std::int64_t n = 1;; n = std::min(2 * n, all)) {
    const Tensor x = view_rows(input, 0, n);
    net.eval();
    Throughput t{n, static_cast<double>(n) / time_of([&] { steps.infer(x); })};
    net.train();
    if (n == all || (n > 1 && !own_loss)) t.training = static_cast<double>(n) / time_of([&] { steps.train(x); });
    list.push_back(t);
    if (n == all) return list;
  }
}

EpochTime measure_epoch(nn::Module& net, Steps& steps, data::DataLoader& loader) {
  net.train();
  EpochTime t;
  const std::int64_t epoch = loader.epoch();
  const double start = now();
  double asked = start;
  for (auto batch : loader) {
    t.waiting += now() - asked;
    ++t.batches;
    t.samples += batch.x.size(0);
    steps.train_on(std::move(batch));
    asked = now();
  }
  t.seconds = now() - start;
  loader.set_epoch(epoch);
  return t;
}

}  // namespace

const char* class_name(Kind kind) {
  switch (kind) {
    case Kind::contraction: return "tensor contraction";
    case Kind::normalisation: return "statistical normalisation";
    default: return name_of(kind);
  }
}

Profile detail::profile(nn::Module& net, const Tensor& input, optim::Optimizer& optimizer, LossCall loss,
                        const ProfileOptions& options) {
  if (DryLedger::active()) fail("profile: measures, and nothing runs in a dry run; call it outside");
  if (!input.defined()) fail("profile: the input is undefined");
  if (input.rank() < 1 || input.numel() == 0) fail(str("profile: needs a batch of samples, got an input of shape ", input.shape()));
  if (options.latency_runs < 0) fail(str("profile: latency_runs must not be negative, got ", options.latency_runs));
  if (options.target.defined() && (options.target.rank() < 1 || options.target.size(0) != input.size(0)))
    fail(str("profile: needs one target for each sample, got targets ", options.target.shape(), " for an input ", input.shape()));
  if (options.target.defined() && loss.call != nullptr) fail("profile: got targets and a loss; the loss has to know its targets");

  if (options.loader != nullptr && loss.call != nullptr)
    fail("profile: got a loader and a loss, which knows nothing of the loader's targets; leave one out");

  const Unchanged unchanged(net, input, optimizer);
  const GradModeScope record(GradMode::record);
  Steps steps(net, optimizer, loss, options.target);
  net.train();
  const auto step = [&] { steps.train(input); };

  Profile p;
  machine();  // and again after the steps: a program beside them easily halves a roof
  p.input = input.shape();
  p.fused = net.fusing();
  p.step = rewind_lib::profile_ops(step, options.steps, options.warmup);
  p.machine = machine_again();
  add_up(p, net);

  p.memory.plan = rewind_lib::dry_run(step);
  p.memory.holders = rewind_lib::peak_holders(step);
  {
    const memory::Scope scope;
    step();
    p.memory.measured = scope.peak();
  }
  p.memory.state = optimizer.state_bytes_by_slot();

  if (options.latency_runs > 0) p.latency = measure_latency(net, steps, input, options.latency_runs);
  if (options.throughput) p.throughput = measure_throughput(net, steps, input, loss.call != nullptr);
  if (options.loader != nullptr) p.epoch = measure_epoch(net, steps, *options.loader);
  return p;
}

}  // namespace rewind_lib
