#include <rewind/nn/module.h>
#include <rewind/nn/plan.h>
#include <rewind/nn/sequential.h>

#include <cxxabi.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <set>
#include <typeinfo>

namespace rewind_lib::nn {
namespace {

std::string join(const std::string& path, std::string_view name) {
  return path.empty() ? std::string(name) : path + "." + std::string(name);
}

/// Paths outlive the modules that they name: tape entries and error texts point at them.
const char* intern(const std::string& text) {
  static std::mutex mutex;
  static auto* const texts = new std::set<std::string>;
  const std::lock_guard guard(mutex);
  return texts->insert(text).first->c_str();
}

/// Fields that goes down into children and hands on what it finds with its path.
class Walk : public Fields {
 public:
  void start(Module& root) { enter("", root); }
  void parameter(std::string_view name, Tensor& value) final { on_parameter(join(path_, name), value); }
  void buffer(std::string_view name, Tensor& value) final { on_buffer(join(path_, name), value); }
  void child(std::string_view name, Module& module) final { enter(join(path_, name), module); }

 protected:
  virtual void on_module(const std::string&, Module&) {}
  virtual void on_parameter(std::string, Tensor&) {}
  virtual void on_buffer(std::string, Tensor&) {}

 private:
  void enter(std::string path, Module& module) {
    std::swap(path_, path);
    on_module(path_, module);
    module.describe(*this);
    std::swap(path_, path);
  }
  std::string path_;
};

class Collect final : public Walk {
 public:
  explicit Collect(bool buffers) : buffers_(buffers) {}
  std::vector<Parameter> found;

 private:
  void add(std::string path, const Tensor& value) {
    if (value.defined() && std::ranges::none_of(found, [&](const Parameter& p) { return p.value.same(value); }))
      found.push_back({std::move(path), value});
  }
  void on_parameter(std::string path, Tensor& value) override {
    if (!buffers_) add(std::move(path), value);
  }
  void on_buffer(std::string path, Tensor& value) override {
    if (buffers_) add(std::move(path), value);
  }
  bool buffers_;
};

class Visit final : public Walk {
 public:
  explicit Visit(ModuleVisitor& visitor) : visitor_(visitor) {}

 private:
  void on_module(const std::string& path, Module& module) override { visitor_.visit(path, module); }
  ModuleVisitor& visitor_;
};

}  // namespace

class PathNaming final : public ModuleVisitor {
 public:
  void visit(const std::string& path, Module& module) override {
    const char* const name = intern(path);
    if (module.path_ != name) module.path_ = name;
    if (module.named_ != 0) module.named_ = 0;
  }
};

void for_each_module(Module& root, ModuleVisitor& visitor) { Visit(visitor).start(root); }

std::string Module::type() const {
  int status = 0;
  char* demangled = abi::__cxa_demangle(typeid(*this).name(), nullptr, nullptr, &status);
  std::string name = demangled != nullptr ? demangled : typeid(*this).name();
  std::free(demangled);
  const auto colon = name.rfind(':');
  return colon == name.npos ? name : name.substr(colon + 1);
}

namespace {

thread_local ModuleObserver* observers = nullptr;

}  // namespace

namespace {

// Grows with every change to what any net is made of, so that what was derived from it is derived again.
std::atomic<std::uint64_t> structure{1};

}  // namespace

std::uint64_t Module::next_version() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}
std::uint64_t Module::structure_version() { return structure.load(std::memory_order_relaxed); }
void Module::change_structure() { structure.fetch_add(1, std::memory_order_relaxed); }

ModuleObserver::ModuleObserver() : outer_(std::exchange(observers, this)) {}
ModuleObserver::~ModuleObserver() {
  for (ModuleObserver** at = &observers; *at != nullptr; at = &(*at)->outer_)
    if (*at == this) {
      *at = outer_;
      break;
    }
}
ModuleObserver::Suspend::Suspend() : saved_(std::exchange(observers, nullptr)) {}
ModuleObserver::Suspend::~Suspend() { observers = saved_; }

void Module::tell_observers(const Shape& output, bool by_neighbour) {
  for (ModuleObserver* o = observers; o != nullptr; o = o->outer_) o->returned(*this, output, by_neighbour);
}

namespace {

thread_local Module* called_first = nullptr;

}  // namespace

Module::Call::Running::Running(Module& module) : before_(called_first) {
  if (before_ == nullptr) called_first = &module;
}
Module::Call::Running::~Running() { called_first = before_; }
Module& Module::Call::Running::first() { return *called_first; }

const Module& Module::Call::named(Module& module) {
  const auto name_below = [](Module& root) {
    PathNaming naming;
    for_each_module(root, naming);
    root.named_ = structure_version();
  };
  if (module.path_ == nullptr && &Running::first() != &module) name_below(Running::first());  // it came to a net that had its names
  if (module.path_ == nullptr || (module.named_ != 0 && module.named_ != structure_version())) name_below(module);
  return module;
}

void Module::Call::begin(Module& module, const Tensor& x) {
  module.note_mode();
  BudgetPlanner* planner = module.planner_.get();
  if (planner == nullptr || grad_mode() == GradMode::off) return;
  replaying() ? planner->recall(module, x) : planner->prepare(module, x);
}

Module& Module::operator=(Module&& other) noexcept {
  planner_ = std::move(other.planner_);
  version_ = other.version_;
  told_ = other.told_;
  training_ = other.training_;
  fusing_ = other.fusing_;
  change_structure();
  return *this;
}

Tensor Module::operator()(Tensor x) {
  Tensor y;
  {
    const Call call(*this, x);
    y = forward(std::move(x));
  }
  tell_observers(y.shape());
  return y;
}

void Module::refuse_budget() const {
  if (planner_.get() == nullptr) return;
  fail(
      str("recompute: ", type(), path()[0] != 0 ? str(" ", path()) : "",
          " has a budget of its own, but runs stage by stage inside another chain. Give the budget to the net that is called, or a "
          "strategy without a budget to this one"));
}

std::vector<Parameter> Module::parameters() {
  Collect collect(false);
  collect.start(*this);
  return std::move(collect.found);
}

std::vector<Parameter> Module::buffers() {
  Collect collect(true);
  collect.start(*this);
  return std::move(collect.found);
}

namespace {

/// Sets a flag of a module and everything below it.
class SetFlag final : public ModuleVisitor {
 public:
  SetFlag(bool Module::*flag, bool value) : flag_(flag), value_(value) {}
  void visit(const std::string&, Module& module) override { module.*flag_ = value_; }

 private:
  bool Module::*flag_;
  bool value_;
};

}  // namespace

void Module::train(bool on) {
  SetFlag set(&Module::training_, on);
  for_each_module(*this, set);
}

void Module::fuse(bool on) {
  change_structure();
  SetFlag set(&Module::fusing_, on);
  for_each_module(*this, set);
}

}  // namespace rewind_lib::nn
