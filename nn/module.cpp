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
    if (module.path_.load() != name) module.path_ = name;
    if (module.begins_paths_) module.begins_paths_ = false;
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

std::atomic<std::uint64_t> net_changes{1};

}  // namespace

std::uint64_t Module::next_version() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}
void Module::change_structure() { changed_ = ++net_changes; }

std::uint64_t Derived::structure() { return net_changes.load(std::memory_order_relaxed); }

std::recursive_mutex& Derived::mutex() {
  static auto* const one = new std::recursive_mutex;
  return *one;
}

std::uint64_t Derived::newest_change(const Module& root) {
  class Newest final : public Fields {
   public:
    std::uint64_t when = 0;
    void parameter(std::string_view, Tensor&) override {}
    void buffer(std::string_view, Tensor&) override {}
    void child(std::string_view, Module& module) override {
      when = std::max(when, module.changed_);
      module.describe(*this);
    }
  } newest;
  newest.child("", const_cast<Module&>(root));  // describe() gives what it lists to be changed, too, and nobody does here
  return newest.when;
}

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
  const auto name_below = [](Module& root, bool must) {
    const auto name = [&] {
      PathNaming naming;
      for_each_module(root, naming);
      root.begins_paths_ = true;
    };
    root.names_.refresh(root, name, must);
  };
  const auto is_named = [&] { return module.path_.load() != nullptr; };
  if (!is_named() && &Running::first() != &module) name_below(Running::first(), true);  // it came to a net that had its names
  if (!is_named() || module.begins_paths_) name_below(module, !is_named());
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

template <class F>
void visit_all(Module& root, F f) {
  class Call final : public ModuleVisitor {
   public:
    explicit Call(F& f) : f_(f) {}
    void visit(const std::string&, Module& module) override { f_(module); }

   private:
    F& f_;
  } call(f);
  for_each_module(root, call);
}

}  // namespace

void Module::train(bool on) {
  visit_all(*this, [on](Module& m) { m.training_ = on; });
}

void Module::fuse(bool on) {
  visit_all(*this, [on](Module& m) {
    m.fusing_ = on;
    m.change_structure();
  });
}

}  // namespace rewind_lib::nn
