#include <rewind/optim/ops.h>

namespace rewind_lib::optim {

std::span<const OpDecl* const> all_ops() {
#define REWIND_OP(name) &ops::name##_op,
  static constexpr const OpDecl* list[] = {
#include <rewind/optim/list.def>
  };
#undef REWIND_OP
  return list;
}

Specs infer_update(const char* op, Inputs in) {
  const auto role = [](std::size_t i) {
    return i == 0 ? std::string("the parameter") : i == 1 ? std::string("the gradient") : str("state ", i - 2);
  };
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (!in[i].defined()) fail(str(op, ": ", role(i), " is undefined"));
    if (!is_float(in[i].dtype()))
      fail(str(op, ": needs float32 or float64, but ", role(i), " is ", in[i].dtype(), " ", in[i].shape()));
    if (in[i].dtype() != in[0].dtype() || !(in[i].shape() == in[0].shape()))
      fail(str(op, ": the parameter is ", in[0].dtype(), " ", in[0].shape(), ", but ", role(i), " is ", in[i].dtype(), " ",
               in[i].shape()));
  }
  return {};
}

Cost update_cost(Inputs in, std::uint32_t mutates, std::int64_t flops_per_element) {
  std::int64_t written = 0;
  for (std::size_t i = 0; i < in.size(); ++i)
    if ((mutates & bit(static_cast<int>(i))) != 0) written += static_cast<std::int64_t>(in[i].bytes());
  return {.flops = flops_per_element * in[0].numel(), .bytes_written = written};
}

}  // namespace rewind_lib::optim
