#pragma once
// The contract of an op: everything Rewind knows about it, declared once.
//
// An op is a struct of static members that satisfies the concept Op. Autograd, the dry run, the planner, the profiler,
// gradcheck, the registry tests and docs/ops.md all derive from that declaration; examples/write_your_own_op.cpp declares
// one outside the library. What a member may see is its contract: infer and cost see shapes, forward sees raw buffers,
// vjp sees the gradients and what the op declared that it saves.

#include <rewind/core/tensor.h>

#include <concepts>
#include <cstring>
#include <type_traits>

namespace rewind_lib {

/// What sort of work an op is; profiles sum by it.
enum class Kind : std::uint8_t { contraction, normalisation, elementwise, reduction, movement, random, optimizer };
const char* name_of(Kind kind);

/// The inputs of an op. Optional inputs may be undefined.
using Inputs = std::span<const Tensor>;

/// What an output will be. view_offset >= 0: no memory of its own, but the bytes of input 0 from that offset on.
struct Spec {
  Shape shape;
  DType dtype = float32;
  std::int64_t view_offset = -1;
  std::uint32_t takes = 0;  ///< inputs whose buffer it may take over; OpDecl::donates says it of output 0, whatever the call
};

/// The outputs of an op, at most max_outputs. Unused slots are neither constructed nor copied, which a small op would notice.
class Specs {
 public:
  static constexpr int max_outputs = 7;
  Specs() {}
  Specs(std::initializer_list<Spec> specs) {
    for (const Spec& s : specs) push_back(s);
  }
  Specs(const Specs& other) {
    for (const Spec& s : other) push_back(s);
  }
  Specs& operator=(const Specs& other) {
    if (this == &other) return *this;
    count_ = 0;
    for (const Spec& s : other) push_back(s);
    return *this;
  }
  ~Specs() {}
  void push_back(const Spec& spec) {
    if (count_ == max_outputs) fail(str("an op makes at most ", max_outputs, " outputs"));
    new (&specs_[count_++]) Spec(spec);
  }
  int size() const { return count_; }
  const Spec& operator[](int i) const { return specs_[i]; }
  const Spec* begin() const { return specs_; }
  const Spec* end() const { return specs_ + count_; }

 private:
  static_assert(std::is_trivially_destructible_v<Spec>);
  union {
    Spec specs_[max_outputs];
  };
  int count_ = 0;
};

/// What an op costs, counted from shapes. 1 MAC = 2 FLOPs. Bytes are what the algorithm must read and write once; the
/// choke point fills them in from the inputs and outputs where an op leaves them at -1.
struct Cost {
  std::int64_t flops = 0;
  std::int64_t macs = 0;
  std::int64_t bytes_read = -1;
  std::int64_t bytes_written = -1;
};

/// Which inputs and outputs the vjp needs, as bit masks. What is not declared here is not there in the vjp.
struct Saves {
  std::uint32_t inputs = 0;
  std::uint32_t outputs = 0;
};
/// The most inputs of an op, and the most outputs that carry gradients: as many as a mask has bits.
constexpr std::size_t most_tensors = 32;
constexpr std::uint32_t bit(int i) { return std::uint32_t{1} << i; }

/// What forward sees: raw buffers. An output may be the same buffer as a donated input.
class Forward {
 public:
  Forward(std::span<const Tensor> in, std::span<const Tensor> out, std::byte* workspace)
      : in_(in), out_(out), workspace_(workspace) {}
  int inputs() const { return static_cast<int>(in_.size()); }
  bool has_input(int i) const { return at(in_, i).defined(); }
  template <class T>
  const T* in(int i) const {
    return at(in_, i).defined() ? at(in_, i).raw<const T>() : nullptr;
  }
  /// For an input that the op declares to mutate.
  template <class T>
  T* mutable_in(int i) const {
    return at(in_, i).raw<T>();
  }
  template <class T>
  T* out(int j) const {
    return at(out_, j).raw<T>();
  }
  const Shape& in_shape(int i) const { return at(in_, i).shape(); }
  const Shape& out_shape(int j) const { return at(out_, j).shape(); }
  DType in_dtype(int i) const { return at(in_, i).dtype(); }
  DType out_dtype(int j) const { return at(out_, j).dtype(); }
  template <class T>
  T* workspace() const {
    return reinterpret_cast<T*>(workspace_);
  }

 private:
  static const Tensor& at(std::span<const Tensor> list, int i) { return list[static_cast<std::size_t>(i)]; }
  std::span<const Tensor> in_, out_;
  std::byte* workspace_;
};

class Vjp;

/// Where an op puts samples of itself. The registry test runs gradcheck, donation, recompute and error checks on them.
class SampleSink {
 public:
  virtual ~SampleSink() = default;
  /// A valid call. Inputs are float64 where they are floats. Where some are marked set_requires_grad(), gradients are
  /// checked for these; else for all floats.
  virtual void add_raw(std::vector<Tensor> inputs, const void* attr) = 0;
  /// A call that must throw Error with `message` in its text.
  virtual void error_raw(std::vector<Tensor> inputs, const void* attr, std::string message) = 0;
};

/// A SampleSink that knows the op's attribute type.
template <class Attr>
class Samples {
 public:
  explicit Samples(SampleSink& sink) : sink_(sink) {}
  void add(std::vector<Tensor> inputs, const Attr& attr = {}) { sink_.add_raw(std::move(inputs), &attr); }
  void error(std::vector<Tensor> inputs, const Attr& attr, std::string message) {
    sink_.error_raw(std::move(inputs), &attr, std::move(message));
  }

 private:
  SampleSink& sink_;
};

/// An op's declaration, type-erased: what declare<Op>() makes of the struct.
struct OpDecl {
  const char* name;
  Kind kind;
  std::size_t attr_size;
  const char* no_gradient;  ///< why there is no vjp; nullptr when there is one
  std::uint32_t donates;    ///< inputs whose buffer output 0 may take over
  std::uint32_t mutates;    ///< inputs that forward writes to (running statistics, parameters); such an op has no outputs, and is
                            ///< skipped in a replay
  std::uint32_t differentiable;  ///< outputs that carry gradients
  bool remakes;                  ///< cheap to run again: a saved output is not kept, but made again in backward from the inputs
  Specs (*infer)(Inputs in, const void* attr);
  Cost (*cost)(Inputs in, const Specs& out, const void* attr);
  std::size_t (*workspace)(Inputs in, const Specs& out, const void* attr);
  Saves (*saves)(const void* attr, std::uint32_t needs);
  void (*forward)(const Forward& f, const void* attr);
  void (*vjp)(Vjp& v, const void* attr);
  void (*samples)(SampleSink& sink);
  void (*release)(const void* attr) noexcept;     ///< for the library's own ops whose attribute owns something
  std::vector<Tensor> (*held)(const void* attr);  ///< the tensors among that, for profiles; may be nullptr
  const char *input_names, *output_names;         ///< separated by ", "; nullptr, or short, where they have none
  std::size_t named_inputs;                       ///< as many have names, and must be there

  /// "x", or "input 0" where it has no name.
  std::string input_name(int i) const;
  std::string output_name(int j) const;
};

/// Runs an op: the only way to run one. Infers shapes, places the outputs (donates an input's buffer or allocates), runs
/// the kernels unless this is a dry run, records what the vjp needs. Inputs are moved from. Throws Error from infer.
void apply(const OpDecl& op, std::span<Tensor> in, const void* attr, std::span<Tensor> out);

/// What a vjp sees. Gradients are written in ops; each goes through apply() like any other, so backward is profiled,
/// dry-run and donated like forward, and can be recorded itself.
class Vjp {
 public:
  virtual ~Vjp() = default;
  /// Whether a gradient for input i is wanted.
  virtual bool needs(int i) const = 0;
  /// The same of all inputs, as a mask.
  std::uint32_t needs() const {
    std::uint32_t mask = 0;
    for (int i = 0; i < inputs(); ++i) mask |= needs(i) ? bit(i) : 0;
    return mask;
  }
  /// Whether a gradient has reached output j.
  virtual bool has_grad(int j) const = 0;
  /// Moves out the gradient of output j; zeros when none has reached it. Once per j.
  virtual Tensor grad(int j) = 0;
  /// Moves out saved input i, saved output j. Once each, and only what saves() declares. Throws Error when the tensor
  /// was modified in place since.
  virtual Tensor input(int i) = 0;
  virtual Tensor output(int j) = 0;
  virtual const Shape& input_shape(int i) const = 0;
  virtual const Shape& output_shape(int j) const = 0;
  virtual int inputs() const = 0;
  /// Moves out what others have given to input i so far, for a kernel that adds to it as it goes: its result, given, then
  /// stands for both. Undefined when that is nothing, or not to be had (a leaf's gradient, create_graph).
  virtual Tensor take_given(int i) = 0;
  /// Gives `value`, which is input i, its place in the graph again: gradients of what is computed from it are added to those of
  /// input i one by one, as they come. False, with nothing done, where no gradient of it is wanted, or its place is not here.
  virtual bool join(int i, Tensor& value) const = 0;
  /// Hands over the gradient of input i, in its shape and dtype.
  virtual void give(int i, Tensor gradient) = 0;
};

/// What a complete declaration has. Besides these an op may have
///   static constexpr std::uint32_t donates, mutates, differentiable;
///   static constexpr bool remakes;
///   static constexpr const char *input_names = "x, w", *output_names = "y";   // for profiles
///   static std::size_t workspace(Inputs, const Specs&, const Attr&);   // bytes of scratch memory
/// and instead of vjp and saves:
///   static constexpr const char* no_gradient = "why";
template <class T>
concept Op = requires(Inputs in, const Specs& out, const typename T::Attr& attr, const Forward& f,
                      Samples<typename T::Attr> samples) {
  requires std::is_trivially_copyable_v<typename T::Attr>;
  requires std::is_convertible_v<decltype(T::name), const char*>;
  requires std::same_as<std::remove_const_t<decltype(T::kind)>, Kind>;
  { T::infer(in, attr) } -> std::same_as<Specs>;
  { T::cost(in, out, attr) } -> std::same_as<Cost>;
  T::forward(f, attr);
  T::samples(samples);
}
&&(
    requires { requires std::is_convertible_v<decltype(T::no_gradient), const char*>; } ||
    requires(Vjp & v, const typename T::Attr& attr) {
      T::vjp(v, attr);
      { T::saves(attr, std::uint32_t{}) } -> std::same_as<Saves>;
    });

namespace detail {
template <class Attr>
const Attr& attr_of(const void* attr) {
  if constexpr (std::is_empty_v<Attr>) {
    static constexpr Attr none{};
    return none;
  } else {
    return *static_cast<const Attr*>(attr);
  }
}
constexpr std::size_t count_names(const char* names) {
  std::size_t count = 1;
  for (; *names != 0; ++names) count += names[0] == ',' ? 1 : 0;
  return count;
}
}  // namespace detail

template <Op T>
constexpr OpDecl declare() {
  using Attr = typename T::Attr;
  using detail::attr_of;
  OpDecl d{};
  static_assert(alignof(Attr) <= 16, "the tape keeps attributes at multiples of 16 bytes");
  d.name = T::name;
  d.kind = T::kind;
  d.attr_size = std::is_empty_v<Attr> ? 0 : sizeof(Attr);
  d.differentiable = ~std::uint32_t{0};
  if constexpr (requires { T::input_names; }) {
    d.input_names = T::input_names;
    d.named_inputs = detail::count_names(T::input_names);
  }
  if constexpr (requires { T::output_names; }) d.output_names = T::output_names;
  if constexpr (requires { T::donates; }) d.donates = T::donates;
  if constexpr (requires { T::mutates; }) d.mutates = T::mutates;
  if constexpr (requires { T::differentiable; }) d.differentiable = T::differentiable;
  if constexpr (requires { T::remakes; }) d.remakes = T::remakes;
  d.infer = [](Inputs in, const void* a) { return T::infer(in, attr_of<Attr>(a)); };
  d.cost = [](Inputs in, const Specs& out, const void* a) { return T::cost(in, out, attr_of<Attr>(a)); };
  if constexpr (requires(Inputs in, const Specs& out, const Attr& a) { T::workspace(in, out, a); })
    d.workspace = [](Inputs in, const Specs& out, const void* a) -> std::size_t { return T::workspace(in, out, attr_of<Attr>(a)); };
  d.forward = [](const Forward& f, const void* a) { T::forward(f, attr_of<Attr>(a)); };
  if constexpr (requires { T::no_gradient; }) {
    d.no_gradient = T::no_gradient;
  } else {
    d.vjp = [](Vjp& v, const void* a) { T::vjp(v, attr_of<Attr>(a)); };
    d.saves = [](const void* a, std::uint32_t needs) { return T::saves(attr_of<Attr>(a), needs); };
  }
  d.samples = [](SampleSink& sink) { T::samples(Samples<Attr>(sink)); };
  return d;
}

/// The declaration of an op written outside the library.
template <Op T>
inline constexpr OpDecl decl_of = declare<T>();

/// Runs an op that has one output.
template <std::size_t N>
Tensor apply_one(const OpDecl& op, Tensor (&&in)[N], const void* attr) {
  Tensor out;
  apply(op, std::span<Tensor>(in, N), attr, std::span<Tensor>(&out, 1));
  return out;
}
/// Runs a user's op that has one output: apply<MyOp>({x, w}, {.alpha = 2}).
template <Op T, std::size_t N>
Tensor apply(Tensor (&&in)[N], const typename T::Attr& attr = {}) {
  return apply_one(decl_of<T>, std::move(in), &attr);
}

/// Every op of the library, from autograd/ops/list.def.
std::span<const OpDecl* const> all_ops();

}  // namespace rewind_lib
