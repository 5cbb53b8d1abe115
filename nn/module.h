#pragma once
// Module: a computation with named parameters, buffers and children.
//
// A module of your own holds its layers as members, lists them in describe(), and computes in forward():
//
//   struct Net : rw::nn::Module {
//     rw::nn::Linear hidden{784, 128}, out{128, 10};
//     void describe(rw::nn::Fields& f) override { f.child("hidden", hidden); f.child("out", out); }
//     rw::Tensor forward(rw::Tensor x) override { return out(rw::relu(hidden(std::move(x)))); }
//   };

#include <rewind/autograd/grad_mode.h>
#include <rewind/autograd/parameter.h>
#include <rewind/autograd/schedule/execute.h>
#include <rewind/autograd/schedule/recompute.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rewind_lib::nn {

class Module;

/// Where describe() lists what a module has. Who asks decides what happens with it.
class Fields {
 public:
  virtual ~Fields() = default;
  /// A tensor that an optimizer updates.
  virtual void parameter(std::string_view name, Tensor& value) = 0;
  /// A tensor that is part of the state but is not trained (running statistics).
  virtual void buffer(std::string_view name, Tensor& value) = 0;
  virtual void child(std::string_view name, Module& module) = 0;
};

class BudgetPlanner;
class Sequential;
class Stage;
/// Owns a BudgetPlanner, or nothing.
class PlannerSlot {
 public:
  PlannerSlot() = default;
  PlannerSlot(PlannerSlot&& other) noexcept : planner_(std::exchange(other.planner_, nullptr)) {}
  PlannerSlot& operator=(PlannerSlot&& other) noexcept {
    if (this != &other) reset(std::exchange(other.planner_, nullptr));
    return *this;
  }
  ~PlannerSlot();
  void reset(BudgetPlanner* planner);
  BudgetPlanner* get() const { return planner_; }

 private:
  BudgetPlanner* planner_ = nullptr;
};

/// A value that several threads may read, and one may set, while they run a net together.
template <class T>
class Shared {
 public:
  Shared(T value = {}) : value_(value) {}
  Shared(const Shared& other) : value_(other.load()) {}
  Shared& operator=(const Shared& other) {
    value_.store(other.load(), std::memory_order_release);
    return *this;
  }
  T load() const { return value_.load(std::memory_order_acquire); }

 private:
  std::atomic<T> value_;
};

/// What was derived from what a net is made of, and is derived again when that has changed. Other nets may be made and changed
/// meanwhile, on other threads, where several run one: to find that nothing has changed in this one only reads it.
class Derived {
 public:
  /// Calls make() where something at or below root has changed since it was called last, at first, and where it `must`.
  template <class F>
  void refresh(const Module& root, F make, bool must = false) {
    const std::uint64_t now = structure();
    if (seen_.load() == now && !must) return;
    const std::lock_guard lock(mutex());
    if (const std::uint64_t newest = newest_change(root); must || seen_.load() == 0 || newest > made_) {
      make();
      made_ = newest;
    }
    seen_ = now;
  }

 private:
  static std::uint64_t structure();  // grows with every change to what any net is made of
  static std::recursive_mutex& mutex();
  static std::uint64_t newest_change(const Module& root);
  Shared<std::uint64_t> seen_ = 0;
  std::uint64_t made_ = 0;
};

class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(Module&&) noexcept = default;
  /// What is assigned to takes over everything but its place in a net, and the path that names it.
  Module& operator=(Module&& other) noexcept;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// What the module computes. Move x along, so that its memory can go early.
  virtual Tensor forward(Tensor x) = 0;
  /// Lists parameters, buffers and children, each under its name. Nothing by default.
  virtual void describe(Fields&) {}
  /// The Sequentials that forward() runs one after the other, when it does nothing else; empty when it does. A chain takes
  /// such a module apart, so that a budget can be met stage by stage.
  virtual std::vector<Sequential*> chains() { return {}; }
  /// The name of the type, as summary() prints it; by default that of the class.
  virtual std::string type() const;

  /// Runs forward(); meanwhile errors, profiles and the NaN guard name this module by its path ("features.3.conv.0"). Several
  /// threads may run one net at once in evaluation, under NoGrad, while nobody changes it; others may make and run nets of their
  /// own.
  Tensor operator()(Tensor x);

  /// All of this module and its children, named by path, each tensor once.
  std::vector<Parameter> parameters();
  std::vector<Parameter> buffers();
  /// Training or evaluation, for this module and its children: dropout and batch normalisation behave differently. What is
  /// recomputed must not be switched between a forward and its backward (Error).
  void train(bool on = true);
  void eval() { train(false); }
  bool training() const { return training_; }
  /// Call it in a layer that looks at training() and that may be run without operator(): to recompute it in the other mode is then
  /// an Error (depends_on()).
  void note_mode() const { depends_on(training_, "train() or eval()"); }
  /// For those who run a layer without a call of its own: ModuleObserver::returned() of this module.
  void tell_observers(const Shape& output, bool by_neighbour = false);
  /// Whether convolutions take over the batch normalisations and activations around them, for this module and its children:
  /// on by default. Off, each is computed by itself, as one reads it, but for a ReLU, which a layer applies as it stores: slower,
  /// in more memory, and equal but for rounding; and it can be differentiated twice. Do not change it between a forward and its
  /// backward.
  void fuse(bool on = true);
  bool fusing() const { return fusing_; }

  /// Chooses what is kept for backward from the next forward on. A Sequential is a chain itself; in any other module it is
  /// the largest chain inside. With a Budget, the module's first forward plans: on shapes alone, with the bytes that are live
  /// then, and leaving room for a loss, twice the size of the output and 64 KiB; later ones plan again when sizes have changed. A
  /// dry run plans by counted costs, and training then follows its plans, so that what it predicted comes true. An optimizer's
  /// state is counted from the first plan on that finds it there: after its first step. A budget is for a module that is called;
  /// what a Sequential runs stage by stage takes any other strategy. Of several calls for one chain the last counts. Throws Error
  /// when there is no chain, and, from forward, when the budget is too small, saying what is needed and why. The module must live
  /// until backward is done.
  void recompute(Recompute how);

  /// The path from the module that was called first, "" for that one itself and before the first call.
  const char* path() const {
    const char* path = path_.load();
    return path == nullptr ? "" : path;
  }

 private:
  friend class PathNaming;
  friend class Sequential;
  friend class BudgetPlanner;
  static std::uint64_t next_version();
  void change_structure();
  friend class Derived;
  friend class Stage;
  class Call;
  /// Throws Error where this module has a budget: for who runs it without a call of its own, stage by stage with its neighbours.
  void refuse_budget() const;
  Shared<const char*> path_;                // interned
  Derived names_;                           // of what is below
  bool begins_paths_ = false;               // this module was called first
  std::uint64_t changed_ = 0;               // when what it is made of did last
  PlannerSlot planner_;                     // with a budget only
  std::uint64_t version_ = next_version();  // of each module another one; an assignment takes it along
  // The version of the last recompute() that was for this module, directly or as the chain of one above. Where a chain's is newer
  // than that of a module with a budget, the chain itself was told something since, and the budget rests.
  std::uint64_t told_ = 0;
  bool training_ = true, fusing_ = true;
};

/// Labels what happens meanwhile with a module's path.
class PathLabel {
 public:
  explicit PathLabel(const Module& module) : scope_(&Location::module, module.path()) {}

 private:
  LocationScope scope_;
};

/// Around a forward: paths are named, errors and profiles name the module meanwhile, and a budget has its plan.
class Module::Call {
 public:
  Call(Module& module, const Tensor& x) : running_(module), label_(named(module)) { begin(module, x); }

 private:
  /// Knows which of the modules that run on this thread was called first.
  class Running {
   public:
    explicit Running(Module& module);
    ~Running();
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    static Module& first();

   private:
    Module* before_;
  };

  static const Module& named(Module& module);
  static void begin(Module& module, const Tensor& x);
  Running running_;
  PathLabel label_;
};

/// Visits a module and everything below it, parents first: visit(path, module).
class ModuleVisitor {
 public:
  virtual ~ModuleVisitor() = default;
  virtual void visit(const std::string& path, Module& module) = 0;
};
void for_each_module(Module& root, ModuleVisitor& visitor);
/// Modules above the one at a path.
inline int depth_of(std::string_view path) { return path.empty() ? 0 : 1 + static_cast<int>(std::ranges::count(path, '.')); }

/// Puts train() or eval() of a module and of everything below it back, at its end, to what they were.
class ModeScope final : ModuleVisitor {
 public:
  explicit ModeScope(Module& root) { for_each_module(root, *this); }
  ~ModeScope() override {
    for (const auto& [module, training] : modes_) module->train(training);  // parents first: children have the last word
  }
  ModeScope(const ModeScope&) = delete;
  ModeScope& operator=(const ModeScope&) = delete;

 private:
  void visit(const std::string&, Module& module) override { modes_.emplace_back(&module, module.training()); }
  std::vector<std::pair<Module*, bool>> modes_;
};

/// Sees the shape of what every module returns, on this thread while alive. summary() is one.
class ModuleObserver {
 public:
  ModuleObserver();
  virtual ~ModuleObserver();
  ModuleObserver(const ModuleObserver&) = delete;
  ModuleObserver& operator=(const ModuleObserver&) = delete;
  /// by_neighbour: what the module computes is left to the layer that follows, or was done by the one before.
  virtual void returned(Module& module, const Shape& output, bool by_neighbour) = 0;
  /// While alive, none on this thread is told anything.
  class Suspend;

 private:
  friend class Module;
  ModuleObserver* outer_;
};

class ModuleObserver::Suspend {
 public:
  Suspend();
  ~Suspend();
  Suspend(const Suspend&) = delete;
  Suspend& operator=(const Suspend&) = delete;

 private:
  ModuleObserver* saved_;
};

}  // namespace rewind_lib::nn
